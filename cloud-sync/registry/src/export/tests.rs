//! The layout of exports, read back.

use std::collections::BTreeMap;
use std::io::Read;

use super::*;
use crate::sink::tests::{Fixture, batch, encoded};
use crate::store::FileQuery;

async fn exported(format: Format, since_ms: u64) -> (BTreeMap<String, Vec<u8>>, Summary) {
    let fixture = Fixture::new().await;
    fixture.sink.accept(&fixture.device, batch(1, encoded(0..3))).await.unwrap();
    fixture.sink.accept(&fixture.device, batch(4, encoded(3..5))).await.unwrap();
    let query = FileQuery { model: "load".into(), version: 2, since_ms: 0, until_ms: u64::MAX };
    let files = fixture.sink.store().row_files(&query).await.unwrap();
    let root = fixture.directory.path().join("objects");
    let export = Export {
        read: |path: &str| Ok(std::fs::read(root.join(path)).unwrap().into()),
        site: "plant".into(),
        since_ms,
        until_ms: u64::MAX,
        temporary: fixture.directory.path().to_owned(),
    };
    let mut tar = Vec::new();
    let summary = export.write(&files, format, &mut tar).unwrap();
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut body = Vec::new();
        entry.read_to_end(&mut body).unwrap();
        found.insert(entry.path().unwrap().to_str().unwrap().to_owned(), body);
    }
    let last = found.remove(SUMMARY_ENTRY).unwrap();
    assert_eq!(serde_json::from_slice::<Summary>(&last).unwrap(), summary);
    (found, summary)
}

#[tokio::test]
async fn csv_is_what_azure_jobs_read() {
    let (files, summary) = exported(Format::Csv, 0).await;
    assert_eq!(summary, Summary { rows: 5, files: 2 });
    let inputs = &files["modeldata/edgewise/edge/plant/d1/load/2/inputs/2023/11/14/inputs.csv"];
    let lines: Vec<&str> = std::str::from_utf8(inputs).unwrap().lines().collect();
    assert_eq!(
        lines[0],
        "load_0,load_1,$aml_dc_correlation_id,$aml_dc_scoring_timestamp,$aml_dc_boundary,$aml_workspace,\
         $aml_service_name,$aml_model_name,$aml_model_version,$aml_request_id"
    );
    assert_eq!(lines[2], "1.0,1.5,c-1,2023-11-14T22:13:20.001000,1440,plant,d1,load,2,r");
    assert_eq!(lines.len(), 6);
    let predictions =
        &files["modeldata/edgewise/edge/plant/d1/load/2/predictions/2023/11/14/predictions.csv"];
    assert!(std::str::from_utf8(predictions).unwrap().lines().nth(1).unwrap().starts_with("7,c-0,"));
}

#[tokio::test]
async fn json_lines_put_tensors_together_and_keep_to_the_time() {
    let (files, summary) = exported(Format::Jsonl, 1_700_000_000_002).await;
    assert_eq!(summary, Summary { rows: 3, files: 1 });
    let text = std::str::from_utf8(&files["modeldata/plant/load/2/2023/11/14/rows.jsonl"]).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["inputs"], serde_json::json!({"load": [2.0, 2.5]}));
    assert_eq!(first["outputs"], serde_json::json!({"label": 7}));
    assert_eq!((&first["device"], &first["sequence"]), (&"d1".into(), &3.into()));
}

#[tokio::test]
async fn parquet_of_a_day_is_one_file() {
    let (files, summary) = exported(Format::Parquet, 0).await;
    assert_eq!(summary, Summary { rows: 5, files: 1 });
    let bytes = Bytes::from(files["modeldata/plant/load/2/2023/11/14/rows.parquet"].clone());
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 5);
    assert_eq!(
        reader.schema().field_with_name("output.label").unwrap().data_type(),
        &arrow_schema::DataType::Int64
    );
}
