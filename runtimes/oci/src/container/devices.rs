//! Device nodes for containers, and what their groups may open.

use super::*;

/// Devices below these are the container's own, privileged or not.
const OWN_DEVICES: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];

/// Device nodes for the container, and what its group may open (`None`: everything).
pub(super) fn devices(
    config: &ContainerConfig,
) -> Result<(Vec<LinuxDevice>, Option<Vec<DeviceRule>>), RuntimeError> {
    let mut nodes = Vec::new();
    if config.security.privileged {
        collect_devices(
            Path::new("/dev"),
            Path::new("/dev"),
            &mut nodes,
            &mut Vec::new(),
            "rwm",
        )?;
        return Ok((nodes, None));
    }
    let mut rules = DeviceRule::defaults();
    for device in &config.devices {
        let found = fs::metadata(&device.host_path).map_err(|error| {
            RuntimeError::InvalidArgument(format!(
                "error gathering device information while adding custom device \"{}\": {error}",
                device.host_path.display()
            ))
        })?;
        if found.is_dir() {
            collect_devices(
                &device.host_path,
                &device.container_path,
                &mut nodes,
                &mut rules,
                &device.permissions,
            )?;
        } else {
            add_device(
                &found,
                device.container_path.clone(),
                &mut nodes,
                &mut rules,
                &device.permissions,
            )?;
        }
    }
    Ok((nodes, Some(rules)))
}

fn collect_devices(
    from: &Path,
    to: &Path,
    nodes: &mut Vec<LinuxDevice>,
    rules: &mut Vec<DeviceRule>,
    access: &str,
) -> Result<(), RuntimeError> {
    for entry in fs::read_dir(from)
        .map_err(RuntimeError::io(from.display().to_string()))?
        .flatten()
    {
        let name = entry.file_name();
        if OWN_DEVICES.iter().any(|own| name == *own) {
            continue;
        }
        let Ok(found) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if found.is_dir() {
            collect_devices(&entry.path(), &to.join(name), nodes, rules, access)?;
        } else {
            add_device(&found, to.join(name), nodes, rules, access)?;
        }
    }
    Ok(())
}

fn add_device(
    found: &fs::Metadata,
    path: PathBuf,
    nodes: &mut Vec<LinuxDevice>,
    rules: &mut Vec<DeviceRule>,
    access: &str,
) -> Result<(), RuntimeError> {
    let kind = found.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Ok(());
    }
    let number = found.rdev();
    nodes.push(spec::device(
        path,
        kind.is_block_device(),
        number,
        found.mode(),
        found.uid(),
        found.gid(),
    )?);
    rules.push(DeviceRule {
        kind: if kind.is_block_device() {
            DeviceKind::Block
        } else {
            DeviceKind::Char
        },
        major: Some(libc::major(number)),
        minor: Some(libc::minor(number)),
        access: access.to_owned(),
    });
    Ok(())
}

/// Reads a rule as [`DeviceRule`] prints it.
pub(super) fn parse_rule(text: &str) -> Option<DeviceRule> {
    let mut words = text.split(' ');
    let kind = match words.next()? {
        "b" => DeviceKind::Block,
        _ => DeviceKind::Char,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    Some(DeviceRule {
        kind,
        major: major.parse().ok(),
        minor: minor.parse().ok(),
        access: words.next()?.to_owned(),
    })
}
