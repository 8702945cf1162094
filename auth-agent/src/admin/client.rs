//! The asking side: used by the command line.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{MAX_ANSWER, PairDetail, Request};

/// One open conversation with an agent.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<Take<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers at {path}: {source}; start it with: handfast agent run")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The socket is root's.
    #[error("{0} is root's: this needs root")]
    NotRoot(PathBuf),
    /// The conversation broke.
    #[error("the agent ended the conversation: {0}")]
    Io(#[from] std::io::Error),
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
    /// The answer is none that this version knows.
    #[error("the agent's answer is not understood (another version?): {0}")]
    Answer(#[from] serde_json::Error),
}

impl Client {
    /// Connects to the agent's administrative socket.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::PermissionDenied => ClientError::NotRoot(path.to_owned()),
                _ => ClientError::Connect {
                    path: path.to_owned(),
                    source,
                },
            })?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader: BufReader::new(reader.take(MAX_ANSWER as u64)),
            writer,
        })
    }

    /// Asks, and waits for the one answer.
    pub async fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.send(request).await?;
        self.next()
            .await?
            .ok_or_else(|| ClientError::Io(std::io::ErrorKind::UnexpectedEof.into()))
    }

    /// All pairs, which come in pieces; with the last, an empty one, the conversation is over.
    pub async fn pairs(&mut self) -> Result<Vec<PairDetail>, ClientError> {
        self.send(&Request::PairList).await?;
        let mut pairs = Vec::new();
        loop {
            match self.next::<Vec<PairDetail>>().await? {
                Some(piece) if piece.is_empty() => return Ok(pairs),
                Some(piece) => pairs.extend(piece),
                // Half a list would look like a whole one.
                None => return Err(ClientError::Io(std::io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    /// Asks for something that is answered line by line.
    pub async fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.writer.write_all(&line).await?;
        Ok(())
    }

    /// The next line of an answer; `None` at its end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        self.reader.get_mut().set_limit(MAX_ANSWER as u64);
        let mut line = String::new();
        if self.reader.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let mut answer: serde_json::Map<String, Value> = serde_json::from_str(&line)?;
        if let Some(Value::String(error)) = answer.remove("error") {
            return Err(ClientError::Refused(error));
        }
        let value = answer.remove("ok").unwrap_or(Value::Null);
        Ok(Some(serde_json::from_value(value)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(count: usize) -> String {
        let pair = serde_json::json!({
            "local": "a", "remote": "b", "peer": "local", "epoch": 1, "expires_in_s": 1,
            "local_proof": null, "remote_proof": null, "rules": [],
        });
        serde_json::json!({ "ok": vec![pair; count] }).to_string() + "\n"
    }

    async fn pairs(said: String) -> Result<Vec<PairDetail>, ClientError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let agent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
        });
        let answer = Client::connect(&path).await.unwrap().pairs().await;
        agent.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn pairs_come_in_pieces_and_what_ends_in_the_middle_is_no_list() {
        let whole = pairs(piece(3) + &piece(2) + &piece(0)).await;
        assert_eq!(whole.unwrap().len(), 5);
        assert!(pairs(piece(0)).await.unwrap().is_empty());
        for cut in [piece(3) + &piece(2), String::new()] {
            let cut = pairs(cut).await;
            assert!(matches!(cut, Err(ClientError::Io(_))), "{cut:?}");
        }
    }
}
