//! Answers to challenges of the old process's orders, given by the new one: a CA that looks finds
//! whoever accepts connections. They go over a socket of their own, one event a message, and the new
//! process says which it gives by now.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::channel::Channel;
use crate::acme::challenges::{Challenges, Copies, Event};
use crate::clock;

/// How long the answers of a process that has ended are given: an order that its end has cut off goes
/// on here, and the CA may be looking already.
const AFTERWARDS: Duration = Duration::from_secs(120);

/// What the new process says, before the number of an answer.
const GIVEN: &str = "given ";

/// The old process's side.
pub(in crate::app) struct Telling(JoinHandle<()>);

impl Telling {
    /// Tells of every answer from now on.
    pub(super) fn start(challenges: &Challenges, channel: Channel) -> Telling {
        Telling(tokio::spawn(tell(challenges.copied(), channel)))
    }

    /// Tells of nothing any more: what is cut off from here on is not taken back.
    pub async fn stop(self) {
        self.0.abort();
        // It was aborted, or had nobody to tell.
        let _ = self.0.await;
    }
}

async fn tell(mut copies: Copies, channel: Channel) {
    let (events, known) = (&mut copies.events, &copies.known);
    let telling = async {
        while let Some(event) = events.recv().await {
            let text = serde_json::to_string(&event).map_err(io::Error::from)?;
            channel.say(&text).await?;
        }
        Ok::<(), io::Error>(())
    };
    // At the same time: neither process waits for the other to hear.
    let hearing = async {
        while let Some(said) = channel.hear().await? {
            if let Some(Ok(number)) = said.strip_prefix(GIVEN).map(str::parse) {
                known.send_replace(number);
            }
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = telling => ended,
        ended = hearing => ended,
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "the new process is not told what a CA is to be answered");
    }
}

/// The new process's side: gives the answers of the old one until that takes them back, or for a
/// while after it has ended.
pub(super) async fn give(challenges: Challenges, channel: Channel) {
    let mut guards = HashMap::new();
    let heard = async {
        while let Some(text) = channel.hear().await? {
            match serde_json::from_str(&text).map_err(io::Error::from)? {
                Event::Given(number, answer) => {
                    let given = challenges.give(&answer, clock::now());
                    guards.insert(number, given.map_err(io::Error::other)?);
                    channel.say(&format!("{GIVEN}{number}")).await?;
                }
                Event::TakenBack(number) => drop(guards.remove(&number)),
            }
        }
        Ok::<(), io::Error>(())
    };
    match heard.await {
        // It has ended between two words.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            tracing::warn!(%error, "the old process's challenges are not answered");
        }
        Ok(()) => {}
    }
    if !guards.is_empty() {
        tokio::time::sleep(AFTERWARDS).await;
    }
}
