//! Commits in groups: what agents say while one transaction runs is the next one, however many they are. Nobody is
//! answered before what he said is durable.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::Error;
use crate::registry::{Heard, Registry};

/// What waits for its transaction; whoever brings one more waits to bring it.
const QUEUE: usize = 1024;
/// What one transaction takes: more would keep others from the store for too long.
const TOGETHER: usize = 256;

/// Where what was heard is brought.
#[derive(Debug)]
pub(super) struct Hearing(mpsc::Sender<Waiting>);

#[derive(Debug)]
struct Waiting {
    heard: Heard,
    written: oneshot::Sender<Result<(), Arc<Error>>>,
}

impl Hearing {
    /// Writes for as long as somebody may bring something. `writer` is held meanwhile: in SQLite who waits for
    /// another's transaction does so by looking again and again.
    pub(super) fn start(registry: Registry, writer: Arc<Mutex<()>>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(write(registry, writer, waiting));
        Self(queue)
    }

    /// Returns when it is durable.
    pub(super) async fn durable(&self, heard: Heard) -> Result<(), Error> {
        let (written, outcome) = oneshot::channel();
        let stopping = || Error::Protocol("the server is stopping".to_owned());
        let brought = self.0.send(Waiting { heard, written }).await;
        brought.map_err(|_| stopping())?;
        let outcome = outcome.await.map_err(|_| stopping())?;
        outcome.map_err(Error::Shared)
    }
}

async fn write(registry: Registry, writer: Arc<Mutex<()>>, mut queue: mpsc::Receiver<Waiting>) {
    let mut group = Vec::with_capacity(TOGETHER);
    while queue.recv_many(&mut group, TOGETHER).await > 0 {
        let (heard, waiting): (Vec<Heard>, Vec<_>) = group
            .drain(..)
            .map(|waiting| (waiting.heard, waiting.written))
            .unzip();
        let turn = writer.lock().await;
        let outcome = registry.hear(heard).await.map_err(Arc::new);
        drop(turn);
        for written in waiting {
            // Who has hung up needs no answer.
            drop(written.send(outcome.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;
    use crate::model::Node;
    use crate::registry::{News, NodeOrder, Store};

    async fn registry(nodes: usize) -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.sqlite");
        Store::create(&path).await.unwrap();
        let store = Store::open(&path).await.unwrap();
        let domain = spiffe::TrustDomain::new("example.org").unwrap();
        let registry = Registry::new(store, domain, vec!["10.0.0.0/8".parse().unwrap()]);
        for number in 0..nodes {
            let order = NodeOrder {
                name: name(number),
                prefixes: vec![],
                underlay: vec![],
                managed: true,
            };
            let sign = |_: &crate::certificate::NodeBinding| Ok(());
            registry
                .attest(&order, "test", &[0; 32], sign)
                .await
                .unwrap();
        }
        (folder, registry)
    }

    fn name(number: usize) -> crate::NodeName {
        format!("node{number}").parse().unwrap()
    }

    async fn nodes(registry: &Registry) -> Vec<Node> {
        let nobody = crate::deny::DenyList::empty();
        registry.nodes_for_operators(&nobody).await.unwrap()
    }

    fn acknowledged(number: usize, sequence: u64) -> Heard {
        Heard {
            node: name(number),
            what: News::Acknowledged {
                sequence,
                problem: String::new(),
                authorities: vec![format!("ca{sequence}")],
            },
        }
    }

    #[tokio::test]
    async fn what_waits_while_others_write_is_written_together() {
        let (_folder, registry) = registry(200).await;
        let writer = Arc::new(Mutex::new(()));
        let hearing = Hearing::start(registry.clone(), Arc::clone(&writer));
        let mut turn = writer.lock().await;
        let said = (0..200).map(|number| hearing.durable(acknowledged(number, 7)));
        let all = join_all(said);
        tokio::pin!(all);
        // One waits for its turn already, the others for him; nobody is answered.
        assert!(futures::poll!(&mut all).is_pending());
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(futures::poll!(&mut all).is_pending());
            drop(turn);
            // Turns come in the order in which they are asked for: one transaction is over.
            turn = writer.lock().await;
        }
        let outcomes = tokio::time::timeout(Duration::from_secs(1), all).await;
        assert!(outcomes.unwrap().iter().all(Result::is_ok));
        let nodes = nodes(&registry).await;
        assert!(nodes.iter().all(|node| node.acknowledged == 7));
    }

    #[tokio::test]
    async fn what_a_node_says_last_counts_and_its_number_never_falls() {
        let (_folder, registry) = registry(1).await;
        let both = vec![acknowledged(0, 9), acknowledged(0, 8)];
        registry.hear(both).await.unwrap();
        let nodes = nodes(&registry).await;
        assert_eq!(nodes[0].acknowledged, 9);
        assert_eq!(nodes[0].authorities_in_use, ["ca8"]);
    }

    #[tokio::test]
    async fn a_store_that_fails_is_told_to_everybody_who_waited() {
        let (_folder, registry) = registry(3).await;
        let hearing = Hearing::start(registry.clone(), Arc::default());
        registry.close().await;
        let said = (0..3).map(|number| hearing.durable(acknowledged(number, 7)));
        for outcome in join_all(said).await {
            assert_eq!(outcome.unwrap_err().code(), tonic::Code::Internal);
        }
    }
}
