//! A backend for Triton's server that is the bare engine: with it Triton's C++ front end is measured (`figures/triton.rs`).
//!
//! Functions, types and numbers are those of Triton's `tritonbackend.h` and `tritonserver.h` (API 1), as far as they are called.
//! The server calls an instance from one thread at a time.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use engine::{DataType, LoadOptions, Model, Provider, Tensor};

/// The Open Inference Protocol's names of `TRITONSERVER_DataType`, each at its number.
const DATA_TYPES: [&str; 14] = [
    "", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32",
    "FP64", "BYTES",
];

const ERROR_INTERNAL: c_int = 1;
const RESPONSE_COMPLETE_FINAL: u32 = 1;
const REQUEST_RELEASE_ALL: u32 = 1;
const MEMORY_CPU: c_int = 0;

/// Any of Triton's objects.
type Handle = *mut c_void;

/// Loads the instance's model.
///
/// # Safety
/// Called by Triton with an instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceInitialize(instance: Handle) -> Handle {
    // SAFETY: the instance is Triton's; the state is taken back by `TRITONBACKEND_ModelInstanceFinalize`.
    load().map_or_else(
        |why| error(&why),
        |model| unsafe {
            TRITONBACKEND_ModelInstanceSetState(instance, Box::into_raw(Box::new(model)).cast())
        },
    )
}

/// Gives the instance's model up.
///
/// # Safety
/// Called by Triton with an instance, last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceFinalize(instance: Handle) -> Handle {
    // SAFETY: a state that is not null is the box that was made at the beginning.
    match out(|state| unsafe { TRITONBACKEND_ModelInstanceState(instance, state) }) {
        Ok(state) if !state.is_null() => drop(unsafe { Box::<Box<dyn Model>>::from_raw(state.cast()) }),
        _ => {}
    }
    null_mut()
}

/// Scores requests, one after the other.
///
/// # Safety
/// Called by Triton with an instance and so many requests, which become the backend's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    instance: Handle,
    requests: *mut Handle,
    count: u32,
) -> Handle {
    // SAFETY: the state is the box that was made at the beginning, and nobody else uses it now.
    let model = match out(|state| unsafe { TRITONBACKEND_ModelInstanceState(instance, state) }) {
        Ok(state) => unsafe { &mut *state.cast::<Box<dyn Model>>() },
        Err(failed) => return failed,
    };
    // SAFETY: there are so many, and each is released once.
    for request in unsafe { slice(requests.cast_const(), count as usize) } {
        unsafe {
            // Nobody is left to be told of an error, which the bench sees as an answer that does not come.
            if let Ok(response) = out(|response| TRITONBACKEND_ResponseNew(response, *request)) {
                let failed = answer(model.as_mut(), *request, response).err().unwrap_or(null_mut());
                TRITONBACKEND_ResponseSend(response, RESPONSE_COMPLETE_FINAL, failed);
                TRITONSERVER_ErrorDelete(failed);
            }
            TRITONBACKEND_RequestRelease(*request, REQUEST_RELEASE_ALL);
        }
    }
    null_mut()
}

unsafe extern "C" {
    fn TRITONSERVER_ErrorNew(code: c_int, message: *const c_char) -> Handle;
    fn TRITONSERVER_ErrorDelete(error: Handle);
    fn TRITONBACKEND_ModelInstanceSetState(instance: Handle, state: Handle) -> Handle;
    fn TRITONBACKEND_ModelInstanceState(instance: Handle, state: *mut Handle) -> Handle;
    fn TRITONBACKEND_RequestInputByIndex(request: Handle, index: u32, input: *mut Handle) -> Handle;
    fn TRITONBACKEND_RequestRelease(request: Handle, flags: u32) -> Handle;
    fn TRITONBACKEND_InputProperties(
        input: Handle,
        name: *mut *const c_char,
        data_type: *mut c_int,
        shape: *mut *const i64,
        dimensions: *mut u32,
        bytes: *mut u64,
        buffers: *mut u32,
    ) -> Handle;
    fn TRITONBACKEND_InputBuffer(
        input: Handle,
        index: u32,
        buffer: *mut *const c_void,
        bytes: *mut u64,
        memory: *mut c_int,
        memory_id: *mut i64,
    ) -> Handle;
    fn TRITONBACKEND_ResponseNew(response: *mut Handle, request: Handle) -> Handle;
    fn TRITONBACKEND_ResponseOutput(
        response: Handle,
        output: *mut Handle,
        name: *const c_char,
        data_type: c_int,
        shape: *const i64,
        dimensions: u32,
    ) -> Handle;
    fn TRITONBACKEND_OutputBuffer(
        output: Handle,
        buffer: *mut Handle,
        bytes: u64,
        memory: *mut c_int,
        memory_id: *mut i64,
    ) -> Handle;
    fn TRITONBACKEND_ResponseSend(response: Handle, flags: u32, error: Handle) -> Handle;
}

fn load() -> Result<Box<dyn Model>, String> {
    let setting = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let (path, threads) = (setting("BACKEND_MODEL")?, setting("BACKEND_THREADS")?);
    let options = LoadOptions {
        provider: Provider::Cpu,
        threads: threads.parse().map_err(|error| format!("{threads}: {error}"))?,
        onnxruntime: Some(PathBuf::from(setting("BACKEND_LIBRARY")?)),
        ..LoadOptions::default()
    };
    let onnx = std::fs::read(&path).map_err(|error| format!("reading {path}: {error}"))?;
    engine::load(&onnx, &options).map(|loaded| loaded.model).map_err(|error| error.to_string())
}

/// Fills the response to a request with what the model says to its first input.
///
/// # Safety
/// Both are Triton's, and the backend's for now.
unsafe fn answer(model: &mut dyn Model, request: Handle, response: Handle) -> Result<(), Handle> {
    // SAFETY: as said above.
    let input = out(|input| unsafe { TRITONBACKEND_RequestInputByIndex(request, 0, input) })?;
    let inputs = [unsafe { read(input) }?].into_iter().collect();
    let outputs = model.score(&inputs).map_err(|why| error(&why))?;
    // SAFETY: as said above.
    outputs.iter().try_for_each(|(name, tensor)| unsafe { write(response, name, tensor) })
}

/// # Safety
/// The input is Triton's, of a request that is not released.
unsafe fn read(input: Handle) -> Result<(String, Tensor), Handle> {
    let (mut name, mut shape) = (null(), null());
    let (mut data_type, mut dimensions, mut size, mut buffers) = (0, 0, 0, 0);
    // SAFETY: each has room for what is written to it.
    checked(unsafe {
        TRITONBACKEND_InputProperties(
            input,
            &mut name,
            &mut data_type,
            &mut shape,
            &mut dimensions,
            &mut size,
            &mut buffers,
        )
    })?;
    // SAFETY: Triton has given a text that ends with a zero, and so many lengths.
    let (name, shape) = unsafe { (CStr::from_ptr(name), slice(shape, dimensions as usize)) };
    let mut bytes = Cow::Borrowed(&[][..]);
    for index in 0..buffers {
        // SAFETY: Triton gives so many bytes, in the memory that is asked for.
        let part = unsafe { buffer(input, index) }?;
        if buffers == 1 {
            bytes = Cow::Borrowed(part);
        } else {
            let all = bytes.to_mut();
            all.reserve_exact((size as usize).saturating_sub(all.len()));
            all.extend_from_slice(part);
        }
    }
    let data_type = usize::try_from(data_type).ok().and_then(|number| DATA_TYPES.get(number));
    let data_type =
        data_type.and_then(|name| DataType::from_oip_name(name)).ok_or_else(|| error(&"the type"))?;
    let shape = shape.iter().map(|length| *length as usize).collect();
    let tensor = engine::binary::read(data_type, shape, &bytes).map_err(|why| error(&why))?;
    Ok((name.to_string_lossy().into_owned(), tensor))
}

/// # Safety
/// The input is Triton's, of a request that is not released while the bytes are used, and has such a buffer.
unsafe fn buffer<'a>(input: Handle, index: u32) -> Result<&'a [u8], Handle> {
    let (mut buffer, mut bytes, mut memory, mut memory_id) = (null(), 0, MEMORY_CPU, 0);
    // SAFETY: each has room for what is written to it.
    checked(unsafe {
        TRITONBACKEND_InputBuffer(input, index, &mut buffer, &mut bytes, &mut memory, &mut memory_id)
    })?;
    // SAFETY: Triton has given so many bytes, on a machine without a GPU.
    Ok(unsafe { slice(buffer.cast(), bytes as usize) })
}

/// # Safety
/// The response is Triton's and not sent.
unsafe fn write(response: Handle, name: &str, tensor: &Tensor) -> Result<(), Handle> {
    let data_type = DATA_TYPES.iter().position(|known| *known == tensor.data_type().oip_name());
    let data_type =
        data_type.and_then(|number| c_int::try_from(number).ok()).ok_or_else(|| error(&"the type"))?;
    let shape: Vec<i64> = tensor.shape().iter().map(|length| *length as i64).collect();
    let name = CString::new(name).map_err(|why| error(&why))?;
    // SAFETY: Triton copies the name and so many lengths.
    let output = out(|output| unsafe {
        let (lengths, count) = (shape.as_ptr(), shape.len() as u32);
        TRITONBACKEND_ResponseOutput(response, output, name.as_ptr(), data_type, lengths, count)
    })?;
    let mut bytes = Vec::new();
    engine::binary::write(tensor, &mut bytes);
    let (mut memory, mut memory_id) = (MEMORY_CPU, 0);
    // SAFETY: Triton gives room for so many bytes, on a machine without a GPU.
    unsafe {
        let buffer = out(|buffer| {
            TRITONBACKEND_OutputBuffer(output, buffer, bytes.len() as u64, &mut memory, &mut memory_id)
        })?;
        buffer.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
    Ok(())
}

/// # Safety
/// There are so many at that address, for as long as they are used; where there are none, it may be anything.
unsafe fn slice<'a, T>(at: *const T, count: usize) -> &'a [T] {
    // SAFETY: as said above.
    if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(at, count) } }
}

/// What a function of Triton gives through a pointer.
fn out(call: impl FnOnce(*mut Handle) -> Handle) -> Result<Handle, Handle> {
    let mut given = null_mut();
    checked(call(&mut given)).map(|()| given)
}

fn checked(failed: Handle) -> Result<(), Handle> {
    if failed.is_null() { Ok(()) } else { Err(failed) }
}

fn error(why: &dyn std::fmt::Display) -> Handle {
    let message = CString::new(why.to_string()).unwrap_or_default();
    // SAFETY: Triton copies the text.
    unsafe { TRITONSERVER_ErrorNew(ERROR_INTERNAL, message.as_ptr()) }
}
