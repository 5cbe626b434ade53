//! A description of an exported file in Croissant 1.0 (<http://mlcommons.org/croissant/1.0>).

use std::path::Path;

use arrow::datatypes::{DataType, Field};
use serde_json::{Value, json};

use super::{Exported, Format};

/// Describes the file at `destination`, which has (rows, bytes, SHA-256).
pub(super) fn describe(output: &Exported<'_>, format: Format, destination: &Path, of: (u64, u64, &str)) -> Value {
    let source = |column: &str| match format {
        Format::Parquet => json!({ "fileObject": { "@id": name(destination) }, "extract": { "column": column } }),
        _ => of_lines(destination, column),
    };
    let fields: Vec<Value> = match format {
        Format::Chat => {
            vec![text("row_id", source("row_id")), several("messages", "role and content of each message", source("messages"))]
        }
        _ => output.table.schema().fields().iter().map(|column| field(column, source(column.name()))).collect(),
    };
    let encoding = match format {
        Format::Parquet => "application/x-parquet",
        _ => LINES,
    };
    dataset(output, destination, encoding, of, fields)
}

/// Describes a file of JSON Lines with a text `row_id` and `column`: a text, or as `each` says, several things.
pub(super) fn describe_lines(
    output: &Exported<'_>,
    destination: &Path,
    of: (u64, u64, &str),
    column: &str,
    each: Option<&str>,
) -> Value {
    let source = of_lines(destination, column);
    let content = match each {
        Some(each) => several(column, each, source),
        None => text(column, source),
    };
    dataset(output, destination, LINES, of, vec![text("row_id", of_lines(destination, "row_id")), content])
}

const LINES: &str = "application/jsonlines";

fn name(destination: &Path) -> String {
    destination.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn of_lines(destination: &Path, column: &str) -> Value {
    json!({ "fileObject": { "@id": name(destination) }, "extract": { "jsonPath": format!("$.{column}") } })
}

fn text(column: &str, source: Value) -> Value {
    json!({ "@type": "cr:Field", "@id": format!("rows/{column}"), "name": column, "dataType": "sc:Text", "source": source })
}

fn several(column: &str, each: &str, source: Value) -> Value {
    let mut field = text(column, source);
    field["repeated"] = true.into();
    field["description"] = each.into();
    field
}

fn dataset(output: &Exported<'_>, destination: &Path, encoding: &str, of: (u64, u64, &str), fields: Vec<Value>) -> Value {
    let (rows, bytes, digest) = of;
    let file = name(destination);
    let about = output.description.map_or_else(|| format!("rows of {}", output.name), str::to_owned);
    json!({
        "@context": context(),
        "@type": "sc:Dataset",
        "name": output.name,
        "description": format!("{about} ({rows} rows, digest {})", output.table.digest()),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "distribution": [{
            "@type": "cr:FileObject", "@id": file, "name": file, "contentUrl": file, "contentSize": format!("{bytes} B"),
            "encodingFormat": encoding, "sha256": digest,
        }],
        "recordSet": [{ "@type": "cr:RecordSet", "@id": "rows", "name": "rows", "key": { "@id": "rows/row_id" }, "field": fields }],
    })
}

fn field(column: &Field, source: Value) -> Value {
    let (data_type, repeated) = match column.data_type() {
        DataType::List(item) => (item.data_type(), true),
        other => (other, false),
    };
    let data_type = match data_type {
        DataType::Boolean => "sc:Boolean",
        data_type if data_type.is_integer() => "sc:Integer",
        data_type if data_type.is_floating() => "sc:Float",
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => "sc:Date",
        _ => "sc:Text",
    };
    let id = format!("rows/{}", column.name());
    let mut field = json!({ "@type": "cr:Field", "@id": id, "name": column.name(), "dataType": data_type, "source": source });
    if repeated {
        field["repeated"] = true.into();
    }
    field
}

/// The context that the specification prescribes.
fn context() -> Value {
    let mut context = json!({
        "@language": "en", "@vocab": "https://schema.org/", "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "sc": "https://schema.org/",
        "conformsTo": "dct:conformsTo",
        "data": { "@id": "cr:data", "@type": "@json" },
        "dataType": { "@id": "cr:dataType", "@type": "@vocab" },
        "examples": { "@id": "cr:examples", "@type": "@json" },
    });
    let terms = [
        "citeAs",
        "column",
        "extract",
        "field",
        "fileObject",
        "fileProperty",
        "fileSet",
        "format",
        "includes",
        "isLiveDataset",
        "jsonPath",
        "key",
        "md5",
        "parentField",
        "path",
        "recordSet",
        "references",
        "regex",
        "repeated",
        "replace",
        "separator",
        "source",
        "subField",
        "transform",
    ];
    for term in terms {
        context[term] = format!("cr:{term}").into();
    }
    context
}
