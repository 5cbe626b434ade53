//! `export`

use ingrain_engine::failure::Failure;
use ingrain_operators::export::{Exported, export as write, format_of};

use crate::{
    End,
    call::ExportCall,
    pipeline::Pipeline,
    progress::{rows, tell},
};

pub(crate) async fn export(call: &ExportCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let (index, output) = pipeline.output(&call.output)?;
    if call.destination.to_string_lossy().contains("://") {
        return Err(Failure::data(format!(
            "`{}` isn't on this machine: exporting to a bucket isn't built yet",
            call.destination.display()
        ))
        .hint("export to a folder here and copy it")
        .into());
    }
    let environment = pipeline.open(&call.store).await?;
    let table = pipeline.table(&environment, index, output).await?;
    let format = match call.format {
        Some(format) => format,
        None => format_of(&call.destination, &table)?,
    };
    let name = format!("{}/{}", pipeline.plan.pipeline, call.output);
    let stage = pipeline.plan.stage(index);
    let exported = Exported { table: &table, name: &name, description: stage.description.as_deref() };
    let written = write(&exported, format, &call.destination).await?;
    let said = match written.files.as_slice() {
        [file, description] => {
            format!("wrote {} to `{}`, described in `{}`", rows(written.count), file.display(), description.display())
        }
        files => format!("wrote {} files to `{}`", files.len(), call.destination.display()),
    };
    tell(&said, None);
    Ok(())
}
