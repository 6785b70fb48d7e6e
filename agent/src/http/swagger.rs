//! The description of `/score` for a model, in the two dialects that Azure ML serves.

use engine::{DataType, TensorSpec};
use serde_json::{Map, Value, json};

use crate::scorer::Facts;

/// Which description is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Swagger 2.0.
    Swagger2,
    /// OpenAPI 3.0.
    OpenApi3,
}

/// Longest free dimension in an example, and longest fixed one that is written out: an image would fill pages.
const EXAMPLE_ROWS: usize = 1;
const EXAMPLE_ELEMENTS: usize = 256;

/// Describes the endpoints for the model of `facts`.
pub(super) fn describe(dialect: Dialect, facts: &Facts) -> Value {
    let schemas = json!({
        "ServiceInput": input(&facts.signature.inputs),
        "ServiceOutput": output(&facts.signature.outputs),
        "ErrorResponse": { "type": "object", "properties": { "message": { "type": "string" } } },
    });
    let info = json!({
        "title": facts.name,
        "description": format!("Scores with version {} of the model {}", facts.version, facts.name),
        "version": facts.version.to_string(),
    });
    let bearer = json!({ "type": "apiKey", "name": "Authorization", "in": "header",
        "description": "For example: Bearer abc123" });
    match dialect {
        Dialect::Swagger2 => json!({
            "swagger": "2.0",
            "info": info,
            "schemes": ["http"],
            "consumes": ["application/json"],
            "produces": ["application/json"],
            "securityDefinitions": { "Bearer": bearer },
            "paths": paths(&Writer { dialect }),
            "definitions": schemas,
        }),
        Dialect::OpenApi3 => json!({
            "openapi": "3.0.3",
            "info": info,
            "paths": paths(&Writer { dialect }),
            "components": { "schemas": schemas, "securitySchemes": { "Bearer": bearer } },
        }),
    }
}

fn paths(writer: &Writer) -> Value {
    let text = json!({ "type": "string" });
    let output = writer.reference("ServiceOutput");
    let mut score = json!({
        "operationId": "RunMLService",
        "description": "Runs the model and answers what it gives",
        "responses": writer.responses("What the model gives", "application/json", &output),
    });
    if let Some(fields) = score.as_object_mut() {
        fields.extend(writer.body(&writer.reference("ServiceInput")));
    }
    let version = writer.query("version", &json!({ "type": "integer", "enum": [2, 3] }));
    json!({
        "/": { "get": {
            "operationId": "ServiceHealthCheck",
            "description": "Answers while the service is up",
            "responses": writer.responses("It is up", "text/plain", &text),
        }},
        "/score": { "post": score },
        "/swagger.json": { "get": {
            "operationId": "GetSwaggerSpec",
            "description": "This description",
            "parameters": [version],
            "responses": writer.responses("The description", "application/json", &json!({ "type": "object" })),
        }},
    })
}

/// Writes what the dialects say differently.
struct Writer {
    dialect: Dialect,
}

impl Writer {
    fn reference(&self, name: &str) -> Value {
        let place = match self.dialect {
            Dialect::Swagger2 => "definitions",
            Dialect::OpenApi3 => "components/schemas",
        };
        json!({ "$ref": format!("#/{place}/{name}") })
    }

    fn body(&self, schema: &Value) -> Map<String, Value> {
        let (key, value) = match self.dialect {
            Dialect::Swagger2 => (
                "parameters",
                json!([{ "name": "serviceInputPayload", "in": "body", "required": true, "schema": schema }]),
            ),
            Dialect::OpenApi3 => (
                "requestBody",
                json!({ "required": true, "content": { "application/json": { "schema": schema } } }),
            ),
        };
        Map::from_iter([(key.to_owned(), value)])
    }

    fn query(&self, name: &str, schema: &Value) -> Value {
        let mut parameter = json!({ "name": name, "in": "query", "required": false });
        match (self.dialect, parameter.as_object_mut(), schema.as_object()) {
            (Dialect::Swagger2, Some(parameter), Some(schema)) => parameter.extend(schema.clone()),
            (_, Some(parameter), _) => {
                parameter.insert("schema".to_owned(), schema.clone());
            }
            (_, None, _) => {}
        }
        parameter
    }

    fn responses(&self, what: &str, kind: &str, schema: &Value) -> Value {
        let response = |what: &str, kind: &str, schema: &Value| match self.dialect {
            Dialect::Swagger2 => json!({ "description": what, "schema": schema }),
            Dialect::OpenApi3 => json!({ "description": what, "content": { kind: { "schema": schema } } }),
        };
        let failed = response("No answer, and why", "application/json", &self.reference("ErrorResponse"));
        json!({ "200": response(what, kind, schema), "default": failed })
    }
}

/// `{"data": …}`: the only input as lists, or rows of several by name.
fn input(inputs: &[TensorSpec]) -> Value {
    let (data, example) = match inputs {
        [only] => (lists(only.data_type, &only.shape), example(only.data_type, &only.shape)),
        several => {
            let row = |spec: &TensorSpec| spec.shape.get(1..).unwrap_or_default().to_vec();
            let schemas = several.iter().map(|spec| (spec.name.clone(), lists(spec.data_type, &row(spec))));
            let examples =
                several.iter().map(|spec| (spec.name.clone(), example(spec.data_type, &row(spec))));
            let names: Vec<&str> = several.iter().map(|spec| spec.name.as_str()).collect();
            let properties: Map<String, Value> = schemas.collect();
            let row = json!({ "type": "object", "properties": properties, "required": names });
            let examples: Map<String, Value> = examples.collect();
            (json!({ "type": "array", "items": row }), json!([examples]))
        }
    };
    json!({
        "type": "object",
        "properties": { "data": data },
        "required": ["data"],
        "example": { "data": example },
    })
}

fn output(outputs: &[TensorSpec]) -> Value {
    match outputs {
        [only] => lists(only.data_type, &only.shape),
        several => {
            let schemas = several.iter().map(|spec| (spec.name.clone(), lists(spec.data_type, &spec.shape)));
            json!({ "type": "object", "properties": schemas.collect::<Map<String, Value>>() })
        }
    }
}

/// The schema of nested lists of this shape.
fn lists(data_type: DataType, shape: &[Option<usize>]) -> Value {
    let element = match data_type {
        DataType::F32 | DataType::F16 => json!({ "type": "number", "format": "float" }),
        DataType::F64 => json!({ "type": "number", "format": "double" }),
        DataType::I64 | DataType::U64 | DataType::U32 => json!({ "type": "integer", "format": "int64" }),
        DataType::I8 | DataType::I16 | DataType::I32 | DataType::U8 | DataType::U16 => {
            json!({ "type": "integer", "format": "int32" })
        }
        DataType::Bool => json!({ "type": "boolean" }),
        DataType::String => json!({ "type": "string" }),
    };
    shape.iter().rev().fold(element, |items, length| match length {
        None => json!({ "type": "array", "items": items }),
        Some(length) => json!({ "type": "array", "items": items, "minItems": length, "maxItems": length }),
    })
}

/// Zeros in this shape; null where they would be too many.
fn example(data_type: DataType, shape: &[Option<usize>]) -> Value {
    let lengths = || shape.iter().map(|length| length.unwrap_or(EXAMPLE_ROWS));
    if lengths().try_fold(1usize, usize::checked_mul).is_none_or(|elements| elements > EXAMPLE_ELEMENTS) {
        return Value::Null;
    }
    let element = match data_type {
        DataType::F32 | DataType::F16 | DataType::F64 => json!(0.0),
        DataType::Bool => json!(false),
        DataType::String => json!(""),
        _ => json!(0),
    };
    lengths().rev().fold(element, |item, length| Value::Array(vec![item; length]))
}
