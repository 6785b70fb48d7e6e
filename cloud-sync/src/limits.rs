//! Every bound on what comes from the wire, in one place, each with its reason.
//!
//! All that arrives is untrusted: it is measured against these before anything is allocated for it.

/// Largest message that either end sends: AWS IoT Core refuses more, and every other broker takes it.
pub const MAX_MESSAGE_BYTES: usize = 128 * 1024;

/// Largest MQTT packet that is read at all: what edgeHub delivers (256 KiB of message) with the longest topic. 2.5
/// times what our own messages may have; what is larger comes from a stranger, ends the connection, and is counted as dropped.
pub const MAX_PACKET_BYTES: usize = 2 * MAX_MESSAGE_BYTES + 64 * 1024;

/// Bytes of a message that its envelope (field names, digests, counters) may take beside its payload.
pub const ENVELOPE_BYTES: usize = 2 * 1024;

/// Largest piece of an object in one `chunk` message.
pub const MAX_PIECE_BYTES: usize = MAX_CHUNK_BYTES;

/// Smallest, average and largest content-defined chunk. The largest leaves half of a message free; the
/// average keeps a manifest under 0.3 % of its bundle and still lets versions share their equal parts.
pub const MIN_CHUNK_BYTES: usize = 4 * 1024;
/// See [`MIN_CHUNK_BYTES`].
pub const AVERAGE_CHUNK_BYTES: usize = 16 * 1024;
/// See [`MIN_CHUNK_BYTES`].
pub const MAX_CHUNK_BYTES: usize = 64 * 1024;

/// Largest manifest: 8 MiB lists over 150,000 chunks, which is more than [`MAX_BUNDLE_BYTES`] can hold.
pub const MAX_MANIFEST_BYTES: usize = 8 * 1024 * 1024;

/// Largest bundle. A model is loaded from memory, and the boards this is for have no more than 2 GiB free.
pub const MAX_BUNDLE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Most files in a bundle, so that a hostile archive can't exhaust inodes or memory.
pub const MAX_BUNDLE_FILES: usize = 1024;

/// Longest path of a file in a bundle, in bytes: what the header of a plain tar holds, whatever the parts.
pub const MAX_PATH_BYTES: usize = 100;

/// Largest `model.toml`, labels or golden file that is read whole for checking.
pub const MAX_DESCRIPTION_BYTES: u64 = 1024 * 1024;
/// See [`MAX_DESCRIPTION_BYTES`]; golden samples hold tensors and may be larger.
pub const MAX_GOLDEN_BYTES: u64 = 64 * 1024 * 1024;

/// Most pieces that one `fetch` asks for: a reply each, so this bounds what a single message can cause.
pub const MAX_WANTS: usize = 256;

/// Most models that one device can be told to run: each has a worker and a place in every report.
pub const MAX_MODELS: usize = 64;

/// Most preferred sizes of a model's batches: twice the powers of two that are in use.
pub const MAX_PREFERRED: usize = 16;

/// Largest captured row, so that one row always fits into one message with its envelope.
pub const MAX_ROW_BYTES: usize = 96 * 1024;

/// Most rows in one telemetry batch.
pub const MAX_BATCH_ROWS: usize = 4096;

/// Largest telemetry batch once decompressed: deflate can blow up a message a thousandfold.
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Largest version, revision, sequence number or count of rows: as far as every database and every JSON reader counts
/// exactly, and far beyond what can be reached by counting.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// Longest free text (an error, a reason) that is kept from or sent to the other end, in bytes.
pub const MAX_TEXT_BYTES: usize = 2048;

/// Cuts `text` to at most [`MAX_TEXT_BYTES`] at a character's border.
pub fn bounded_text(text: impl Into<String>) -> String {
    let mut text = text.into();
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// How far a revision may be ahead of what is known: each change of what a device shall run makes one, so what is farther
/// ahead is a mistake or a forgery, and to follow it would leave no numbers.
pub const MAX_REVISIONS_AHEAD: u64 = 1_000_000;
