//! Volumes: shared, read-only, nested, single files.

use super::{Fixture, Program, support::*};
use crate::*;

const WRITE: Program = Program::WriteFile { path: "/data/file" };
const READ: Program = Program::ReadFile { path: "/data/file" };

pub(super) async fn a_volume_is_shared_by_containers_and_node(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "volume").await;
    let volume = volume(&sandbox, "shared");
    let mut writer = fixture.container_config(&sandbox, "writer", WRITE);
    writer.mounts.push(mount(&volume, "/data"));
    let id = start(fixture, &sandbox, &writer).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    let text = std::fs::read_to_string(volume.join("file"));
    assert_eq!(text.expect("it was written"), "written\n");
    let mut reader = fixture.container_config(&sandbox, "reader", READ);
    reader.mounts.push(mount(&volume, "/data"));
    let id = start(fixture, &sandbox, &reader).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    logged(&reader, "written").await;
    // Without the volume there is no such file.
    let other = fixture.container_config(&sandbox, "other", READ);
    let id = start(fixture, &sandbox, &other).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 1);
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_readonly_volume_is_not_written(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "readonly").await;
    let volume = volume(&sandbox, "readonly");
    let readonly = Mount {
        readonly: true,
        ..mount(&volume, "/data")
    };
    let mut config = fixture.container_config(&sandbox, "write", WRITE);
    config.mounts.push(readonly.clone());
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 1);
    assert!(!volume.join("file").exists());
    std::fs::write(volume.join("file"), "from the node\n").expect("the node may write");
    let mut config = fixture.container_config(&sandbox, "read", READ);
    config.mounts.push(readonly);
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    logged(&config, "from the node").await;
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_volume_lies_within_another(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "nested").await;
    let (outer, inner) = (volume(&sandbox, "outer"), volume(&sandbox, "inner"));
    let program = Program::WriteFile {
        path: "/data/inner/file",
    };
    std::fs::create_dir(outer.join("inner")).expect("a directory can be made");
    let mut config = fixture.container_config(&sandbox, "main", program);
    config.mounts.push(mount(&outer, "/data"));
    config.mounts.push(mount(&inner, "/data/inner"));
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    assert!(inner.join("file").exists() && !outer.join("inner/file").exists());
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_single_file_is_mounted(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "file").await;
    let file = volume(&sandbox, "files").join("message");
    std::fs::write(&file, "").expect("a file can be made");
    let program = Program::WriteFile {
        path: "/dev/termination-log",
    };
    let mut config = fixture.container_config(&sandbox, "main", program);
    config.mounts.push(mount(&file, "/dev/termination-log"));
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    let text = std::fs::read_to_string(&file);
    assert_eq!(text.expect("the file stays"), "written\n");
    remove(fixture, &sandbox).await;
}

pub(super) async fn recursive_readonly_reaches_mounts_below(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let has_it = runtime.status().await.features.recursive_readonly_mounts;
    let sandbox = sandbox(fixture, "recursive").await;
    // What every node has: a directory with file systems below it.
    let readonly = Mount {
        readonly: true,
        ..mount(std::path::Path::new("/dev"), "/node")
    };
    let script = "for d in top shm; do [ $d = top ] && at=/node || at=/node/$d; f=$at/wherry-$$; \
                  touch $f 2>/dev/null && echo $d && rm $f; done; true";
    let (_, lines) = run_script(fixture, &sandbox, "plain", script, |config| {
        config.mounts.push(readonly.clone());
    })
    .await;
    assert_eq!(lines, ["shm"]);
    let recursive = Mount {
        recursive_readonly: true,
        ..readonly
    };
    let mut config = fixture.container_config(&sandbox, "recursive", Program::Shell(script));
    config.mounts.push(recursive);
    let created = runtime.create_container(&sandbox, &config).await;
    if has_it {
        let id = ok(created);
        ok(runtime.start_container(&id).await);
        exit(&runtime, &id).await;
        assert!(log_lines(&config.log_path).is_empty());
    } else {
        assert!(
            matches!(created, Err(RuntimeError::Unsupported(_))),
            "not a feature, and not refused: {created:?}"
        );
    }
    remove(fixture, &sandbox).await;
}
