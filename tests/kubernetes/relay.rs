//! A way to the API server that a test can cut while the server itself goes on: what the authority uses in place of the
//! server's own port.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::harness::namespace::Namespace;

/// Between two looks for a connection.
const LOOK: Duration = Duration::from_millis(10);

/// Ends with its connections when it is dropped.
pub struct Relay {
    way: Arc<Mutex<Way>>,
    accepts: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Way {
    is_cut: bool,
    is_over: bool,
    /// Both ends of every connection.
    open: Vec<TcpStream>,
}

impl Relay {
    /// Relays what comes to one port of a namespace's loopback to another one there.
    pub fn start(ns: &Namespace, from: u16, to: u16) -> anyhow::Result<Self> {
        let ns = Namespace::open(ns.name())?;
        let listener = ns.inside(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, from))?))?;
        listener.set_nonblocking(true)?;
        let way = Arc::new(Mutex::new(Way::default()));
        let shared = Arc::clone(&way);
        let accepts = std::thread::spawn(move || {
            // Only the thread is in the namespace, so that connections begin there.
            let done = ns.inside(|| accept(&listener, to, &shared));
            done.unwrap();
        });
        Ok(Self {
            way,
            accepts: Some(accepts),
        })
    }

    /// Ends every connection, and lets none through until it is healed.
    pub fn cut(&self) {
        let mut way = locked(&self.way);
        way.is_cut = true;
        way.end();
    }

    /// Lets connections through again.
    pub fn heal(&self) {
        locked(&self.way).is_cut = false;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        {
            let mut way = locked(&self.way);
            way.is_over = true;
            way.end();
        }
        if let Some(accepts) = self.accepts.take() {
            let _ = accepts.join();
        }
    }
}

impl Way {
    fn end(&mut self) {
        for stream in self.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, to: u16, way: &Mutex<Way>) -> anyhow::Result<()> {
    loop {
        let near = match listener.accept() {
            Ok((near, _)) => Some(near),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error).context("accept"),
        };
        let mut way = locked(way);
        if way.is_over {
            return Ok(());
        }
        match near {
            Some(near) if !way.is_cut => {
                // One that cannot be relayed ends, as a cut one does.
                if let Ok(ends) = relay(near, to) {
                    way.open.extend(ends);
                }
            }
            Some(_) => {}
            None => {
                drop(way);
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn relay(near: TcpStream, to: u16) -> io::Result<[TcpStream; 2]> {
    near.set_nonblocking(false)?;
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    for (from, into) in [(&near, &far), (&far, &near)] {
        let (mut from, mut into) = (from.try_clone()?, into.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut into);
            let _ = into.shutdown(Shutdown::Both);
        });
    }
    Ok([near, far])
}

fn locked(way: &Mutex<Way>) -> std::sync::MutexGuard<'_, Way> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}
