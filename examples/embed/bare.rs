//! A language model continues a text, through the C API and without a crate. Weights are linked in.
//!
//!     rustc -O bare.rs -L native=FOLDER -l static=model

use std::ffi::{c_char, c_int, c_void, CStr};
use std::ptr::{null, null_mut};

const VOCABULARY: usize = 256;
const MOST_TENSORS: usize = 64;

/// `coil_options` of coil.h; `size` lets a library of another version read it.
#[repr(C)]
struct Options {
    size: usize,
    weights_path: *const c_char,
    weights: *const c_void,
    weights_bytes: u64,
    memory: *mut c_void,
}

/// The first fields of `coil_entry` and `coil_description`, which is all that is read here.
#[repr(C)]
struct Entry {
    name: *const c_char,
    counts: [i32; 4],
    tables: [*const c_void; 3],
    state_count: i32,
    states: *const c_void,
}

#[repr(C)]
struct Description {
    abi_version: u32,
    entry_count: i32,
    entries: *const Entry,
}

extern "C" {
    fn coil_abi_version() -> u32;
    fn coil_describe() -> *const Description;
    fn coil_error_message() -> *const c_char;
    fn coil_open(options: *const Options, model: *mut *mut c_void) -> c_int;
    fn coil_close(model: *mut c_void);
    fn coil_session_open(model: *const c_void, threads: i32, session: *mut *mut c_void) -> c_int;
    fn coil_session_close(session: *mut c_void);
    fn coil_session_bind(session: *mut c_void, entry: i32, symbols: *const i64) -> c_int;
    fn coil_session_advance(
        session: *mut c_void, entry: i32, state: *mut c_void, inputs: *const *const c_void, outputs: *const *mut c_void,
    ) -> c_int;
    fn coil_state_open(model: *mut c_void, history: i32, state: *mut *mut c_void) -> c_int;
    fn coil_state_close(state: *mut c_void);
}

fn check(status: c_int) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(coil_error_message()) }.to_string_lossy().into_owned())
}

/// Closes what it holds, in the order opposite to opening.
struct Owned(*mut c_void, unsafe extern "C" fn(*mut c_void));

impl Drop for Owned {
    fn drop(&mut self) {
        unsafe { (self.1)(self.0) }
    }
}

fn opened(close: unsafe extern "C" fn(*mut c_void), open: impl FnOnce(*mut *mut c_void) -> c_int) -> Result<Owned, String> {
    let mut object = null_mut();
    check(open(&mut object))?;
    Ok(Owned(object, close))
}

fn entry_named(name: &str) -> Result<i32, String> {
    let entries = unsafe {
        let all = &*coil_describe();
        std::slice::from_raw_parts(all.entries, all.entry_count as usize)
    };
    let found = entries.iter().position(|e| unsafe { CStr::from_ptr(e.name) }.to_bytes() == name.as_bytes());
    found.map(|i| i as i32).ok_or_else(|| format!("the model has no entry '{name}'"))
}

fn main() -> Result<(), String> {
    assert_eq!(unsafe { coil_abi_version() }, 4, "bare.rs was written for another coil.h");
    let prompt = std::env::args().nth(1).unwrap_or("def read(".into());
    let step = entry_named("step")?;
    let options = Options {
        size: size_of::<Options>(), weights_path: null(), weights: null(), weights_bytes: 0, memory: null_mut(),
    };
    let model = opened(coil_close, |place| unsafe { coil_open(&options, place) })?;
    let session = opened(coil_session_close, |place| unsafe { coil_session_open(model.0, 1, place) })?;
    let state = opened(coil_state_close, |place| unsafe { coil_state_open(model.0, 1, place) })?;
    check(unsafe { coil_session_bind(session.0, step, &1) })?;

    let mut logits = [0f32; VOCABULARY];
    let mut advance = |token: i64| -> Result<i64, String> {
        let mut inputs = [null(); MOST_TENSORS]; // the states have pointers of their own
        let mut outputs = [null_mut(); MOST_TENSORS];
        inputs[0] = (&raw const token).cast();
        outputs[0] = logits.as_mut_ptr().cast();
        check(unsafe { coil_session_advance(session.0, step, state.0, inputs.as_ptr(), outputs.as_ptr()) })?;
        Ok((0..VOCABULARY).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i64)
    };
    let mut token = 0;
    for byte in prompt.bytes() {
        token = advance(byte.into())?;
    }
    let mut text = Vec::new();
    for _ in 0..64 {
        text.push(token as u8);
        token = advance(token)?;
    }
    println!("{}", String::from_utf8_lossy(&text));
    Ok(())
}
