//! Types of the fields of wherry.dev's own kind: k8s-openapi carries those of Kubernetes.

use std::borrow::Cow;

use k8s_openapi::{
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, ObjectMeta},
    },
    schemars::{JsonSchema, Schema, SchemaGenerator, json_schema},
};

/// A type with the schema that a function makes.
macro_rules! schemas {
    ($($(#[$meta:meta])* $name:ident = $make:ident;)*) => {$(
        $(#[$meta])*
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                concat!("dev.wherry.v1alpha1.", stringify!($name)).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                $make(generator)
            }
        }
    )*};
}

schemas! {
    /// A plugin that nodes can call.
    Plugin = plugin;
    /// What the operator says.
    PluginSpec = spec;
    /// What the plugin may do.
    PluginGrants = grants;
    /// What each call may use.
    PluginLimits = limits;
    /// Who has to have signed it.
    PluginSignature = signature;
    /// What nodes say.
    PluginStatus = status;
    /// What one node says.
    PluginNodeStatus = node;
}

fn plugin(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Plugin is a Wasm component that nodes call, as a probe, under limits and with what it is granted.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": "wherry.dev/v1alpha1", "type": "string"},
            "kind": {"description": "Plugin", "type": "string"},
            "metadata": generator.subschema_for::<ObjectMeta>(),
            "spec": generator.subschema_for::<PluginSpec>(),
            "status": generator.subschema_for::<PluginStatus>(),
        }
    })
}

fn spec(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "image": {
                "description": "Reference of the OCI artifact or image that holds the component. Empty for a built-in plugin, of which the other fields then replace what it declares.",
                "type": "string",
            },
            "digest": {
                "description": "Digest of the artifact's manifest, its config or the component itself; anything else is refused. Empty takes what the reference names.",
                "type": "string",
            },
            "class": {
                "description": "What the plugin is for: Probe, Populator, Mounter or Filesystem. It decides the limits that are not said: a call about a volume may use 128Mi, a minute of CPU time and ten minutes altogether.",
                "type": "string",
            },
            "failurePolicy": {
                "description": "What a call without an outcome counts as: Fail (a failed probe), Ignore (it does not count, the default), LastResult (what the same check said last).",
                "type": "string",
            },
            "config": {
                "description": "What the operator tells the plugin, by key.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "grants": generator.subschema_for::<PluginGrants>(),
            "limits": generator.subschema_for::<PluginLimits>(),
            "signature": generator.subschema_for::<PluginSignature>(),
        }
    })
}

fn grants(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Nothing is granted that is not named here.",
        "type": "object",
        "properties": {
            "exec": {
                "description": "Commands may be run in probed containers.",
                "type": "boolean",
            },
            "hosts": {
                "description": "Where it may connect to besides the probed pod: name, *.domain, address or range, with or without :port; * for anywhere.",
                "type": "array",
                "items": {"type": "string"},
            },
            "secrets": {
                "description": "Secrets of a probed pod's namespace that it may read: name, or name/key; * for all.",
                "type": "array",
                "items": {"type": "string"},
            },
            "volumes": {
                "description": "Files on a probed pod's volumes may be read.",
                "type": "boolean",
            },
            "logs": {
                "description": "What a probed container has written to its log may be read.",
                "type": "boolean",
            },
            "namedHosts": {
                "description": "For volumes: it may connect to hosts that the volume's attributes name, but not by that to the node itself.",
                "type": "boolean",
            },
            "mountTypes": {
                "description": "For mounters: kinds of file systems that it may have mounted, such as nfs4.",
                "type": "array",
                "items": {"type": "string"},
            },
            "devices": {
                "description": "For mounters: devices that it may have attached, as kind:what, where * stands for any text: loop:/srv/images/*.",
                "type": "array",
                "items": {"type": "string"},
            },
        }
    })
}

fn limits(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What each call may use, and how many there may be.",
        "type": "object",
        "properties": {
            "memory": generator.subschema_for::<Quantity>(),
            "cpuTimeMilliseconds": {
                "description": "CPU time of the plugin's own code in a call. Default: 500.",
                "type": "integer",
                "format": "int32",
            },
            "wallTimeMilliseconds": {
                "description": "Time of a call, should the probe's own time-out be longer. Default: 30000.",
                "type": "integer",
                "format": "int32",
            },
            "instances": {
                "description": "Calls at once on one node; more wait for their turn. Default: 8.",
                "type": "integer",
                "format": "int32",
            },
        }
    })
}

fn signature(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Who has to have signed the artifact, besides what a node demands of all plugins.",
        "type": "object",
        "properties": {
            "publicKeys": {
                "description": "PEM, ECDSA on P-256, as cosign makes them; one of them has to have signed. Empty: nobody has to.",
                "type": "array",
                "items": {"type": "string"},
            },
        }
    })
}

fn status(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "nodes": {
                "description": "What each node says, by the node's name.",
                "type": "object",
                "additionalProperties": generator.subschema_for::<PluginNodeStatus>(),
            },
            "conditions": {
                "description": "Ready: all nodes that tried can call it.",
                "type": "array",
                "items": generator.subschema_for::<Condition>(),
            },
        }
    })
}

fn node(_: &mut SchemaGenerator) -> Schema {
    let mut schema = json_schema!({
        "description": "Counters begin with the agent and with each change of the spec.",
        "type": "object",
        "properties": {
            "ready": {"description": "Probes on the node can call it.", "type": "boolean"},
            "reason": {"description": "Why they cannot, or what else is wrong, in a word.", "type": "string"},
            "message": {"description": "The same in more words.", "type": "string"},
            "digest": {"description": "Names the component that is called.", "type": "string"},
            "imports": {
                "description": "Interfaces that the component imports.",
                "type": "array",
                "items": {"type": "string"},
            },
            "lastError": {"description": "The last trouble with a call.", "type": "string"},
            "lastErrorTime": {"description": "When that was, RFC 3339.", "type": "string"},
        }
    });
    for (name, description) in [
        ("calls", "Calls that were made."),
        ("errors", "Of those, errors that the plugin declared."),
        ("traps", "Of those, ends by trap."),
        (
            "limitsExceeded",
            "Of those, ends by a limit of memory, CPU time or time.",
        ),
        ("lost", "Of those, lost with the worker."),
        ("denied", "Requests for what is not granted."),
        (
            "notMade",
            "Calls that were not made, their input being set apart.",
        ),
        (
            "setApart",
            "Inputs set apart for killing the plugin again and again.",
        ),
        ("durationMicrosecondsAverage", "Time of a call."),
        ("durationMicrosecondsMax", "Time of the longest call."),
        (
            "cpuMicrosecondsAverage",
            "CPU time of the plugin's own code in a call.",
        ),
        ("memoryBytesPeak", "Most memory that a call used."),
        (
            "workerRestarts",
            "How often the node's plugin worker was replaced.",
        ),
    ] {
        let field =
            serde_json::json!({"type": "integer", "format": "int64", "description": description});
        if let Some(properties) = schema
            .get_mut("properties")
            .and_then(|properties| properties.as_object_mut())
        {
            properties.insert(name.into(), field);
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use k8s_openapi::schemars::SchemaGenerator;

    #[test]
    fn the_reference_explains_every_field() {
        let reference = include_str!("../../../docs/plugins/reference.md");
        let mut generator = SchemaGenerator::default();
        for make in [
            super::spec,
            super::grants,
            super::limits,
            super::signature,
            super::node,
        ] {
            let schema = make(&mut generator);
            let properties = schema.get("properties").and_then(|all| all.as_object());
            for name in properties.expect("an object has properties").keys() {
                assert!(
                    reference.contains(&format!("`{name}`")),
                    "{name} is not in docs/plugins/reference.md"
                );
            }
        }
    }
}
