//! Writes the C bindings of a world: what `wit-bindgen c` does, without installing a program for it.
//!
//! `bindings-c WIT-FOLDER WORLD OUT-FOLDER`

use std::{env, fs, path::Path};

use anyhow::{Context, Result};
use wit_bindgen_core::{Files, wit_parser::Resolve};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [wit, world, out] = arguments.as_slice() else {
        anyhow::bail!("bindings-c WIT-FOLDER WORLD OUT-FOLDER");
    };
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit)?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default()
        .build()
        .generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(out).with_context(|| out.clone())?;
    for (name, content) in files.iter() {
        fs::write(Path::new(out).join(name), content).with_context(|| name.to_owned())?;
    }
    Ok(())
}
