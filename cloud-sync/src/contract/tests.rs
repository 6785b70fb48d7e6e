//! Golden bytes: what each message looks like on the wire. A change here breaks devices in the field.

use std::fmt::Debug;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::rows::{Column, Row};

#[test]
fn every_message_has_its_golden_bytes() {
    golden(&presence(), PRESENCE);
    golden(&desired(), DESIRED);
    golden(&reported(), REPORTED);
    golden(&reported_by_a_board(), REPORTED_BY_A_BOARD);
    golden(&fetch(), FETCH);
    golden(&chunk(), CHUNK);
    golden(&telemetry(), TELEMETRY);
    golden(&Telemetry { clock: Some(clock()), ..telemetry() }, TELEMETRY_WITH_CLOCK);
    golden(&receipt(), RECEIPT);
    golden(&command(), COMMAND);
    golden(&reply(), REPLY);
    assert_eq!(hex(&row().encode().unwrap()), ROW);
    assert_eq!(Row::decode(&unhex(ROW)).unwrap(), row());
}

#[test]
fn every_phase_and_codec_has_its_word() {
    let phases = [
        (Phase::Fetching, "fetching"),
        (Phase::Verifying, "verifying"),
        (Phase::Proving, "proving"),
        (Phase::Active, "active"),
        (Phase::Rejected, "rejected"),
        (Phase::RolledBack, "rolled-back"),
    ];
    for (phase, word) in phases {
        assert_eq!(json!(phase), json!(word));
    }
    assert_eq!(json!([Codec::Cbor, Codec::CborDeflate]), json!(["cbor", "cbor-deflate"]));
}

#[test]
fn fields_of_a_later_version_are_ignored() {
    ignores_news(&presence());
    ignores_news(&desired());
    ignores_news(&reported());
    ignores_news(&reported_by_a_board());
    ignores_news(&fetch());
    ignores_news(&chunk());
    ignores_news(&telemetry());
    ignores_news(&receipt());
    ignores_news(&command());
    ignores_news(&reply());
    let encoded = edited(&row().encode().unwrap(), &add_news);
    assert_eq!(Row::decode(&encoded).unwrap(), row());
}

#[test]
fn fields_that_an_earlier_version_lacks_have_defaults() {
    let Desired { collect, models, .. } =
        without(&desired(), &["collect", "deployment", "settings", "signature"]);
    assert_eq!((collect, models[0].deployment), (None, 0));
    assert_eq!(models[0].settings, ModelSettings::default());
    assert_eq!(models[0].signature, None);

    // As from an agent before it told of its board.
    assert_eq!(decode::<Reported>(&unhex(REPORTED)).unwrap().hardware.pressure, None);
    let optional = ["why", "active", "previous", "engine", "provider", "memory_bytes", "ledger", "cores"];
    let Reported { models, ledger, hardware, .. } = without(&reported(), &optional);
    assert_eq!((models[0].why.as_deref(), models[0].active, models[0].memory_bytes), (None, None, None));
    assert_eq!((ledger, hardware.cores), (Ledger::default(), 0));

    assert_eq!(without(&fetch(), &["offset"]).wants[0].offset, 0);
    assert_eq!(without(&telemetry(), &["ledger"]).ledger, Ledger::default());
    assert!(without(&command(), &["arguments"]).arguments.is_empty());
}

#[test]
fn what_breaks_a_bound_is_neither_sent_nor_believed() {
    let want = Want { digest: digest(), offset: 0 };
    refused(&Fetch { wants: vec![want; limits::MAX_WANTS + 1] }, "wants");
    accepted(&Fetch { wants: vec![want; limits::MAX_WANTS] });

    let model =
        |number| DesiredModel { name: format!("m{number}").parse().unwrap(), ..desired().models[0].clone() };
    let models = |count: usize| Desired { models: (0..count).map(model).collect(), ..desired() };
    refused(&models(limits::MAX_MODELS + 1), "models");
    accepted(&models(limits::MAX_MODELS));

    let piece = |bytes: usize| Chunk { bytes: ByteBuf::from(vec![7; bytes]), ..chunk() };
    refused(&piece(limits::MAX_PIECE_BYTES + 1), "bytes");
    accepted(&piece(limits::MAX_PIECE_BYTES));

    refused(&Command { id: "x".repeat(129), ..command() }, "id");
    refused(&Receipt { stream: "x".repeat(65), ..receipt() }, "stream");
    let long = "x".repeat(MAX_WORD_BYTES + 1);
    refused(&Presence { boot_id: long.clone(), ..presence() }, "boot id");
    refused(&Presence { agent_version: long.clone(), ..presence() }, "agent version");
    let agent = AgentInfo { state: long, ..reported().agent };
    refused(&Reported { agent, ..reported() }, "state");
    let dropped = (0..=MAX_REASONS).map(|reason| (reason.to_string(), 0)).collect();
    refused(&Telemetry { ledger: Ledger { dropped, ..Ledger::default() }, ..telemetry() }, "reasons");

    refused(&Telemetry { rows: ByteBuf::from(vec![0; limits::MAX_MESSAGE_BYTES]), ..telemetry() }, "body");
}

#[test]
fn what_can_not_be_meant_is_neither_sent_nor_believed() {
    let mut twice = desired();
    twice.models.push(twice.models[0].clone());
    flawed(&twice);
    for rate in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
        let collect = Some(Collect { enabled: true, rate });
        flawed(&Desired { collect, ..desired() });
        let mut of_a_model = desired();
        of_a_model.models[0].settings.collect = collect;
        flawed(&of_a_model);
    }

    let beyond = limits::MAX_NUMBER + 1;
    flawed(&Desired { revision: beyond, ..desired() });
    accepted(&Desired { revision: limits::MAX_NUMBER, ..desired() });
    let model = |edit: fn(&mut ReportedModel)| {
        let mut reported = reported();
        edit(&mut reported.models[0]);
        reported
    };
    flawed(&model(|model| model.active = Some(u64::MAX)));
    flawed(&model(|model| model.previous = Some(u64::MAX)));
    flawed(&Reported { revision: beyond, ..reported() });
    let dropped = BTreeMap::from([("full".to_owned(), beyond)]);
    flawed(&Reported { ledger: Ledger { dropped, ..Ledger::default() }, ..reported() });
    flawed(&Telemetry { first_sequence: beyond, ..telemetry() });
}

#[test]
fn a_body_that_promises_more_than_it_holds_is_refused_without_making_room_for_it() {
    // {"wants": [ … 2^62 of them, {"bytes": 2^62 bytes …, and an array in an array in an array …
    let lies = ["a16577616e74739b4000000000000000", "a1656279746573 5b4000000000000000"];
    for lie in lies {
        let body = unhex(&lie.replace(' ', ""));
        assert!(decode::<Fetch>(&body).is_err());
        assert!(decode::<Chunk>(&body).is_err());
    }
    let mut nested = unhex(
        "a4626964617864 6e616d656178 68646561646c696e6500 69617267756d656e7473a16161"
            .replace(' ', "")
            .as_str(),
    );
    nested.extend(std::iter::repeat_n(0x81, 100_000));
    assert!(decode::<Command>(&nested).is_err());
}

#[test]
fn a_message_that_was_cut_off_is_refused() {
    for end in 0..unhex(REPORTED).len() {
        assert!(decode::<Reported>(&unhex(REPORTED)[..end]).is_err(), "at {end}");
    }
}

#[test]
fn the_ledger_adds_up_only_where_every_row_is_in_one_place() {
    let ledger = reported().ledger;
    assert!(ledger.adds_up());
    assert!(!Ledger { held: ledger.held + 1, ..ledger.clone() }.adds_up());
    assert!(!Ledger { lost: u64::MAX, ..ledger }.adds_up());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_never_more_than_an_error(body in prop::collection::vec(any::<u8>(), 0..512)) {
        decode_as_everything(&body);
    }

    #[test]
    fn damaged_messages_are_never_more_than_an_error(
        which in 0..GOLDEN.len(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = unhex(GOLDEN[which]);
        let at = at.index(body.len());
        body[at] = value;
        decode_as_everything(&body);
        body.truncate(cut.index(body.len()));
        decode_as_everything(&body);
    }
}

fn decode_as_everything(body: &[u8]) {
    let _ = decode::<Presence>(body);
    let _ = decode::<Desired>(body);
    let _ = decode::<Reported>(body);
    let _ = decode::<Fetch>(body);
    let _ = decode::<Chunk>(body);
    let _ = decode::<Telemetry>(body);
    let _ = decode::<Receipt>(body);
    let _ = decode::<Command>(body);
    let _ = decode::<Reply>(body);
    let _ = Row::decode(body);
    let _ = crate::rows::unpack(Codec::Cbor, body);
    let _ = crate::rows::unpack(Codec::CborDeflate, body);
}

fn golden<M: Message + PartialEq + Debug>(message: &M, bytes: &str) {
    assert_eq!(hex(&encode(message).unwrap()), bytes, "{} on the wire", M::KIND);
    assert_eq!(&decode::<M>(&unhex(bytes)).unwrap(), message);
}

fn ignores_news<M: Message + PartialEq + Debug>(message: &M) {
    let body = edited(&encode(message).unwrap(), &add_news);
    assert_eq!(&decode::<M>(&body).unwrap(), message);
}

fn without<M: Message>(message: &M, fields: &[&str]) -> M {
    let body = edited(&encode(message).unwrap(), &|object| {
        object.retain(|key, _| !fields.iter().any(|field| *key == text(field)));
    });
    decode(&body).unwrap()
}

fn accepted<M: Message + PartialEq + Debug>(message: &M) {
    assert_eq!(&decode::<M>(&encode(message).unwrap()).unwrap(), message);
}

fn refused<M: Message>(message: &M, field: &str) {
    for error in [
        encode(message).err(),
        // As from an end that has no bounds.
        decode::<M>(&serde_cbor::to_vec(message).unwrap()).err(),
    ] {
        match error {
            Some(ContractError::Limit { what, .. }) => assert_eq!(what, field),
            other => panic!("{} with too much in {field}: {other:?}", M::KIND),
        }
    }
}

fn flawed<M: Message>(message: &M) {
    let received = decode::<M>(&serde_cbor::to_vec(message).unwrap()).err();
    for error in [encode(message).err(), received] {
        assert!(matches!(error, Some(ContractError::Value { .. })), "{}: {error:?}", M::KIND);
    }
}

type Object = BTreeMap<serde_cbor::Value, serde_cbor::Value>;

fn text(text: &str) -> serde_cbor::Value {
    serde_cbor::Value::Text(text.to_owned())
}

/// What a later version may add to any struct of the contract.
fn add_news(object: &mut Object) {
    let news = serde_cbor::Value::Array(vec![serde_cbor::Value::Null, serde_cbor::Value::Bytes(vec![1])]);
    object.insert(text("from_a_later_version"), serde_cbor::Value::Map(Object::from([(text("news"), news)])));
}

/// The bytes with every map in them edited, except those whose keys are data.
fn edited(bytes: &[u8], edit: &dyn Fn(&mut Object)) -> Vec<u8> {
    fn walk(value: &mut serde_cbor::Value, edit: &dyn Fn(&mut Object)) {
        match value {
            serde_cbor::Value::Array(list) => list.iter_mut().for_each(|value| walk(value, edit)),
            serde_cbor::Value::Map(object) => {
                let data = ["dropped", "arguments", "result"].map(text);
                let fields = object.iter_mut().filter(|(key, _)| !data.contains(key));
                fields.for_each(|(_, value)| walk(value, edit));
                edit(object);
            }
            _ => {}
        }
    }
    let mut value = serde_cbor::from_slice(bytes).unwrap();
    walk(&mut value, edit);
    serde_cbor::to_vec(&value).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

fn digest() -> Digest {
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff".parse().unwrap()
}

fn presence() -> Presence {
    Presence { online: true, boot_id: "boot".into(), agent_version: "0.1.0".into() }
}

fn desired() -> Desired {
    let settings = ModelSettings {
        provider: Some("auto".into()),
        threads: Some(2),
        instances: Some(1),
        queue: Some(64),
        max_batch: None,
        max_delay_us: None,
        preferred_batch: None,
        optimization: None,
        arena: None,
        collect: Some(Collect { enabled: false, rate: 0.25 }),
    };
    Desired {
        revision: 7,
        models: vec![DesiredModel {
            name: "load".parse().unwrap(),
            version: 2,
            digest: digest(),
            size: 140_000,
            deployment: 5,
            signature: Some(ByteBuf::from(vec![1, 2, 3])),
            settings,
        }],
        collect: Some(Collect { enabled: true, rate: 0.5 }),
    }
}

fn reported() -> Reported {
    Reported {
        revision: 7,
        models: vec![ReportedModel {
            name: "load".parse().unwrap(),
            version: 2,
            phase: Phase::RolledBack,
            why: Some("why".into()),
            active: Some(1),
            previous: Some(2),
            engine: Some("tract".into()),
            provider: Some("cpu".into()),
            memory_bytes: Some(1_000_000),
            transfer: Some(Transfer {
                fetched_bytes: 30_931,
                shared_bytes: 110_389,
                fetch_ms: 75,
                proof_ms: 305,
                swap_us: 1,
            }),
        }],
        agent: AgentInfo { version: "0.1.0".into(), boot_id: "boot".into(), state: "running".into() },
        hardware: Hardware {
            architecture: "aarch64".into(),
            operating_system: "Debian 12".into(),
            cores: 4,
            processor: "Cortex-A72".into(),
            memory_bytes: 1 << 32,
            disk_free_bytes: 1 << 33,
            ..Hardware::default()
        },
        ledger: Ledger {
            captured: 100,
            uploaded: 60,
            held: 30,
            dropped: BTreeMap::from([("full".to_owned(), 7), ("old".to_owned(), 1)]),
            lost: 2,
        },
    }
}

fn reported_by_a_board() -> Reported {
    let hardware = Hardware {
        board: Some("Raspberry Pi 4".into()),
        memory_limit_bytes: Some(1 << 28),
        memory_available_bytes: Some(1 << 27),
        disk_bytes: Some(1 << 34),
        disk: Some("ext4 on an SD card".into()),
        celsius: Some(71),
        critical_celsius: Some(110),
        throttled: vec!["under-voltage now".into()],
        clock_synchronised: Some(true),
        gpus: vec!["v3d".into()],
        c_library: Some("glibc 2.36".into()),
        swap_bytes: Some(1 << 26),
        system_disk_free_bytes: Some(1 << 30),
        clock_plausible: Some(true),
        clock_hardware: Some(false),
        frequency_capped: Some(true),
        certificate_until: Some(1_900_000_000),
        engines: vec![
            EngineInfo { name: "tract".into(), version: Some("0.23.4".into()), why_not: None },
            EngineInfo { name: "cpu".into(), version: None, why_not: Some("no library".into()) },
        ],
        pressure: Some(Pressure { level: "strained".into(), why: Some("hot".into()) }),
        ..reported().hardware
    };
    Reported { models: Vec::new(), hardware, ledger: Ledger::default(), ..reported() }
}

fn fetch() -> Fetch {
    Fetch { wants: vec![Want { digest: digest(), offset: 65_536 }] }
}

fn chunk() -> Chunk {
    Chunk { digest: digest(), offset: 65_536, total: 65_539, bytes: ByteBuf::from(vec![1, 2, 3]) }
}

fn telemetry() -> Telemetry {
    Telemetry {
        stream: "stream".into(),
        first_sequence: 300,
        after: 299,
        codec: Codec::CborDeflate,
        rows: ByteBuf::from(vec![9, 8, 7]),
        ledger: Ledger { captured: 3, held: 3, ..Ledger::default() },
        clock: None,
    }
}

fn clock() -> Clock {
    Clock { boot_id: "boot".into(), monotonic_ns: 5_000_000_000, wall_ms: 1_800_000_000_000 }
}

fn receipt() -> Receipt {
    Receipt { stream: "stream".into(), durable_through: 302, again: false }
}

fn command() -> Command {
    let arguments = json!({ "rate": 0.5, "on": true, "list": [1, null, "x"] });
    let arguments = arguments.as_object().unwrap().clone();
    Command { id: "c-1".into(), name: "collect".into(), arguments, deadline: 1_800_000_000_000 }
}

fn reply() -> Reply {
    Reply { id: "c-1".into(), status: 404, result: json!({ "error": "no such command" }) }
}

fn row() -> Row {
    let column = |name: &str, datatype: &str, shape: &[u64], data: &[u8]| Column {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        data: ByteBuf::from(data),
    };
    Row {
        model: "load".parse().unwrap(),
        version: 2,
        correlation_id: "c".into(),
        request_id: "r".into(),
        boot_id: "boot".into(),
        monotonic_ns: 5_000_000_000,
        wall_ms: 1_800_000_000_000,
        wall_sure: false,
        inputs: vec![column("load", "FP32", &[2], &[0, 0, 128, 63, 0, 0, 0, 64])],
        outputs: vec![column("label", "BYTES", &[], &[3, 0, 0, 0, b'l', b'o', b'w'])],
    }
}

const GOLDEN: [&str; 12] = [
    PRESENCE,
    DESIRED,
    REPORTED,
    REPORTED_BY_A_BOARD,
    FETCH,
    CHUNK,
    TELEMETRY,
    TELEMETRY_WITH_CLOCK,
    RECEIPT,
    COMMAND,
    REPLY,
    ROW,
];
const PRESENCE: &str = "a3666f6e6c696e65f567626f6f745f696464626f6f746d6167656e745f76657273696f6e65302e312e30";
const DESIRED: &str = "\
    a3687265766973696f6e07666d6f64656c7381a7646e616d65646c6f61646776657273696f6e026664696765737458200011\
    2233445566778899aabbccddeeff00112233445566778899aabbccddeeff6473697a651a000222e06a6465706c6f796d656e\
    7405697369676e6174757265\
    430102036873657474696e6773a56870726f7669646572646175746f67746872656164730269696e7374616e636573016571\
    75657565184067636f6c6c656374a267656e61626c6564f46472617465f9340067636f6c6c656374a267656e61626c6564f5\
    6472617465f93800";
const REPORTED: &str = "\
    a5687265766973696f6e07666d6f64656c7381aa646e616d65646c6f61646776657273696f6e026570686173656b726f6c6c\
    65642d6261636b637768796377687966616374697665016870726576696f75730266656e67696e656574726163746870726f\
    7669646572636370756c6d656d6f72795f62797465731a000f4240687472616e73666572a56d666574636865645f62797465\
    731978d36c7368617265645f62797465731a0001af356866657463685f6d73184b6870726f6f665f6d731901316773776170\
    5f757301656167656e74a36776657273696f6e65302e312e3067626f6f745f696464626f6f746573746174656772756e6e69\
    6e67686861726477617265a66c6172636869746563747572656761617263683634706f7065726174696e675f73797374656d\
    6944656269616e20313265636f726573046970726f636573736f726a436f727465782d4137326c6d656d6f72795f62797465\
    731b00000001000000006f6469736b5f667265655f62797465731b0000000200000000666c6564676572a568636170747572\
    656418646875706c6f61646564183c6468656c64181e6764726f70706564a26466756c6c07636f6c6401646c6f737402";
const REPORTED_BY_A_BOARD: &str = "\
    a5687265766973696f6e07666d6f64656c7380656167656e74a36776657273696f6e65302e312e3067626f6f745f696464626f6f74\
    6573746174656772756e6e696e67686861726477617265b8196c6172636869746563747572656761617263683634706f7065726174\
    696e675f73797374656d6944656269616e20313265636f726573046970726f636573736f726a436f727465782d4137326c6d656d6f\
    72795f62797465731b00000001000000006f6469736b5f667265655f62797465731b000000020000000065626f6172646e52617370\
    62657272792050692034726d656d6f72795f6c696d69745f62797465731a10000000766d656d6f72795f617661696c61626c655f62\
    797465731a080000006a6469736b5f62797465731b0000000400000000646469736b7265787434206f6e20616e2053442063617264\
    6763656c73697573184770637269746963616c5f63656c73697573186e697468726f74746c65648171756e6465722d766f6c746167\
    65206e6f7772636c6f636b5f73796e6368726f6e69736564f56467707573816376336469635f6c6962726172796a676c6962632032\
    2e33366a737761705f62797465731a040000007673797374656d5f6469736b5f667265655f62797465731a400000006f636c6f636b\
    5f706c61757369626c65f56e636c6f636b5f6861726477617265f4706672657175656e63795f636170706564f57163657274696669\
    636174655f756e74696c1a713fb30067656e67696e657382a2646e616d656574726163746776657273696f6e66302e32332e34a264\
    6e616d6563637075677768795f6e6f746a6e6f206c696272617279687072657373757265a2656c6576656c6873747261696e656463\
    77687963686f74666c6564676572a5686361707475726564006875706c6f61646564006468656c64006764726f70706564a0646c6f\
    737400";
const FETCH: &str = "\
    a16577616e747381a266646967657374582000112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\
    666f66667365741a00010000";
const CHUNK: &str = "\
    a466646967657374582000112233445566778899aabbccddeeff00112233445566778899aabbccddeeff666f66667365741a\
    0001000065746f74616c1a0001000365627974657343010203";
const TELEMETRY: &str = "\
    a66673747265616d6673747265616d6e66697273745f73657175656e636519012c65616674657219012b65636f6465636c63\
    626f722d6465666c61746564726f777343090807666c6564676572a5686361707475726564036875706c6f61646564006468\
    656c64036764726f70706564a0646c6f737400";
const TELEMETRY_WITH_CLOCK: &str = "\
    a76673747265616d6673747265616d6e66697273745f73657175656e636519012c65616674657219012b65636f6465636c63\
    626f722d6465666c61746564726f777343090807666c6564676572a5686361707475726564036875706c6f61646564006468\
    656c64036764726f70706564a0646c6f73740065636c6f636ba367626f6f745f696464626f6f746c6d6f6e6f746f6e69635f\
    6e731b000000012a05f2006777616c6c5f6d731b000001a3185c5000";
const RECEIPT: &str = "a26673747265616d6673747265616d6f64757261626c655f7468726f75676819012e";
const COMMAND: &str = "\
    a462696463632d31646e616d6567636f6c6c65637469617267756d656e7473a36472617465f93800626f6ef5646c69737483\
    01f6617868646561646c696e651b000001a3185c5000";
const REPLY: &str = "\
    a362696463632d316673746174757319019466726573756c74a1656572726f726f6e6f207375636820636f6d6d616e64";
const ROW: &str = "\
    aa656d6f64656c646c6f61646776657273696f6e026e636f7272656c6174696f6e5f696461636a726571756573745f696461\
    7267626f6f745f696464626f6f746c6d6f6e6f746f6e69635f6e731b000000012a05f2006777616c6c5f6d731b000001a318\
    5c50006977616c6c5f73757265f466696e7075747381a4646e616d65646c6f61646864617461747970656446503332657368\
    61706581026464617461480000803f00000040676f75747075747381a4646e616d65656c6162656c68646174617479706565\
    425954455365736861706580646461746147030000006c6f77";
