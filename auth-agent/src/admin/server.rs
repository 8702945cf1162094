//! The answering side: reads requests, hands them to the agent's loop, writes what comes back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::{MAX_REQUEST, Request};

/// Conversations at once; further ones wait. Each pod that waits for its identity has one, and people want theirs beside.
const MAX_CONVERSATIONS: usize = 512;

/// A request on its way to the agent's loop.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// What the agent's loop answers.
#[derive(Debug)]
pub enum Answer {
    /// One value.
    Value(Value),
    /// Values as they come, until the asker leaves or the sender is dropped.
    Stream(mpsc::Receiver<Value>),
    /// Why not.
    Error(String),
}

/// Binds the socket (root's alone) and serves it until the task is dropped.
pub async fn serve(path: &Path, requests: mpsc::Sender<Asked>) -> std::io::Result<()> {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONVERSATIONS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = std::sync::Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let requests = requests.clone();
                    tokio::spawn(async move {
                        // The asker's going away is its own affair.
                        let _ = converse(stream, requests).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the administrative socket cannot accept");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    });
    Ok(())
}

async fn converse(stream: UnixStream, requests: mpsc::Sender<Asked>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST as u64));
    let mut line = String::new();
    loop {
        line.clear();
        reader.get_mut().set_limit(MAX_REQUEST as u64);
        if reader.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match answer(&line, &requests).await {
            Answer::Value(value) => write(&mut writer, json!({ "ok": value })).await?,
            Answer::Error(error) => write(&mut writer, json!({ "error": error })).await?,
            Answer::Stream(mut values) => {
                let mut ignored = [0u8; 1];
                loop {
                    tokio::select! {
                        value = values.recv() => match value {
                            Some(value) => write(&mut writer, json!({ "ok": value })).await?,
                            None => return Ok(()),
                        },
                        read = reader.read(&mut ignored) => {
                            if read? == 0 {
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
    }
}

async fn answer(line: &str, requests: &mpsc::Sender<Asked>) -> Answer {
    let request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return Answer::Error(format!("the request is not understood: {error}")),
    };
    let (sender, receiver) = oneshot::channel();
    let asked = Asked {
        request,
        answer: sender,
    };
    if requests.send(asked).await.is_err() {
        return Answer::Error("the agent is stopping".into());
    }
    receiver
        .await
        .unwrap_or_else(|_| Answer::Error("the agent is stopping".into()))
}

async fn write(writer: &mut tokio::net::unix::OwnedWriteHalf, value: Value) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&value)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
