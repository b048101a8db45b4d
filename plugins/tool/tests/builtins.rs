//! Built-in plugins do what scripts say, beyond the function that is their world's own.

use wherry_plugin_tool::{PluginCommand, ScriptArgs, run};

const LOOP: &str = r#"
cases:
- name: a volume is made for a claim
  given:
    request.attribute: {directory: /srv/images, fsType: ext4}
  call: provisioner.create
  arguments: [{bytes-min: 3000000, access: [read-write-once], claim: default/data}]
  calls:
  - images.make: [/srv/images, 3145728]
    answer: {ok: /srv/images/pv-1.img}
  expect:
    ok:
      handle: /srv/images/pv-1.img
      bytes: 3145728
      attributes: [[file, /srv/images/pv-1.img], [fsType, ext4]]
      reach: this-node
- name: one that many nodes are to use is refused
  call: provisioner.create
  arguments: [{bytes-min: 1, access: [read-write-many], claim: default/data}]
  expect: {err: {invalid-attributes: {contains: ReadWriteMany}}}
- name: it is mounted, and made larger
  given:
    request.attribute: {file: /srv/images/pv-1.img}
    request.access: read-write
  steps:
  - calls:
    - mounts.attach: [loop, [[file, /srv/images/pv-1.img]]]
      answer: {ok: /dev/loop3}
    - mounts.format: [/dev/loop3, ext4]
      answer: ok
    - mounts.mount: [ext4, /dev/loop3, []]
      answer: ok
    expect: ok
  - call: expand
    arguments: [8388608]
    calls:
    - mounts.grow: [8388608]
      answer: {ok: 8388608}
    expect: {ok: 8388608}
- name: it is taken away
  call: provisioner.delete
  arguments: [/srv/images/pv-1.img]
  calls:
  - images.remove: [/srv/images]
    answer: ok
  expect: ok
"#;

#[tokio::test]
async fn a_provisioner_makes_mounts_grows_and_removes_by_a_script() {
    let home = tempfile::tempdir().expect("a directory");
    let at = |name: &str| home.path().join(name);
    let builtin = wherry_plugin_embedded::find("loop").expect("a built-in one");
    std::fs::write(at("loop.wasm"), builtin.wasm).expect("written");
    std::fs::write(at("loop.yaml"), LOOP).expect("written");
    let tested = run(PluginCommand::Test(ScriptArgs {
        plugin: Some(at("loop.wasm")),
        memory: 16,
        filter: String::new(),
        scripts: vec![at("loop.yaml")],
    }));
    tested.await.expect("it does what the script says");
}
