//! Who the processes run as: names looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! Runs inside the container's root, so the files are the image's. They may be anything: a pipe, a
//! directory, endless.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
};

use super::Failure;
use crate::{bundle::Bundle, protocol::Identity};

/// More of a file than this is not read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Resolves the user that the pod, or else the image, names.
pub(super) fn identity(bundle: &Bundle) -> Result<Identity, Failure> {
    resolve(bundle, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn read(path: &str) -> Result<String, Failure> {
    let file = match fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
    {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(String::new());
        }
        Err(error) => return Err(Failure::named(path)(error)),
    };
    if !file.metadata().map_err(Failure::named(path))?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(Failure::named(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("/");
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn resolve(bundle: &Bundle, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let named = match bundle.run_as_user {
        Some(uid) => uid.to_string(),
        None => bundle.user.clone().unwrap_or_default(),
    };
    let (user, user_group) = match named.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (named.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    // A number that is also a name is a name to login programs and a number to Kubernetes.
    let number = user.parse::<u32>().ok();
    let found = match number {
        Some(uid) => users(passwd).find(|known| known.uid == uid),
        None => users(passwd).find(|known| known.name == user),
    };
    let uid = match (number, &found) {
        (Some(uid), _) => uid,
        (None, Some(found)) => found.uid,
        (None, None) => {
            return Err(Failure::invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let gid = match (bundle.run_as_group, user_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match name.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => groups(group)
                .find(|(known, _, _)| *known == name)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| {
                    Failure::invalid(format!(
                        "unable to find group {name}: no matching entries in group file"
                    ))
                })?,
        },
        (None, None) => found.as_ref().map_or(0, |found| found.gid),
    };
    let mut supplementary = vec![gid];
    if let Some(found) = &found
        && user_group.is_none()
    {
        supplementary.extend(
            groups(group)
                .filter(|(_, _, members)| members.split(',').any(|member| member == found.name))
                .map(|(_, gid, _)| gid),
        );
    }
    supplementary.extend(&bundle.supplemental_groups);
    let mut seen = std::collections::HashSet::new();
    supplementary.retain(|gid| seen.insert(*gid));
    let home = found.map_or("/", |found| found.home);
    let home = if home.is_empty() { "/" } else { home };
    Ok(Identity {
        uid,
        gid,
        groups: supplementary,
        home: home.to_owned(),
    })
}

#[cfg(test)]
mod tests;
