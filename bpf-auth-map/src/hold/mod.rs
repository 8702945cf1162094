//! Where held packets wait: the device that they come out of, and the frames.

mod device;
mod frame;

pub use device::HoldDevice;
pub use frame::{Frame, FrameError, Held};
