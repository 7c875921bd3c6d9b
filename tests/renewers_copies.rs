//! Programs and people that copy a new pair over the old one, file by file.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::renewers::{Row, Turn};
use crate::rows;
use crate::support::certs::Leaf;
use crate::support::command;
use crate::support::writers::{Pair, backdate, copy_by, cp, dribble};

rows! {
    rsync_keeps_an_older_time: Row::PAIR;
    rsync_in_place_keeps_an_older_time: Row::PAIR;
    cp_keeps_an_older_time: Row::PAIR;
    cp_keeps_the_very_same_time: Row::PAIR.built_by(made_long_ago);
    install_removes_and_makes_anew: Row::PAIR;
    acme_sh: Row::PAIR;
    acme_sh_keeps_the_key: Row::PAIR.same_key();
    the_certificate_is_copied_first: Row::PAIR.in_a_folder_only();
    the_key_is_copied_first: Row::PAIR.in_a_folder_only();
    another_file_is_renamed_over: Row::PAIR;
    an_editor_keeps_a_backup: Row::PAIR;
    it_is_written_slowly: Row::PAIR;
    the_chain_follows_slowly: Row::PAIR.same_key();
    the_leaf_alone_comes_first: Row::PAIR.built_by(with_the_leaf_alone).in_a_folder_only();
    it_is_deleted_and_made_anew: Row::PAIR;
    it_is_gone_for_a_while: Row::PAIR;
    a_thousand_events_a_second: Row::PAIR;
}

/// Between an operator's two copies.
const GAP: Duration = Duration::from_secs(1);

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000)
}

/// A pair with a modification time that its successor will have, too.
fn made_long_ago(folder: &Path, leaf: &Leaf) -> Pair {
    let pair = Pair::write(folder, leaf);
    backdate_all(&pair);
    pair
}

fn backdate_all(pair: &Pair) {
    for file in pair.files() {
        backdate(file, long_ago());
    }
}

async fn copy_backdated(turn: Turn<'_>, program: &[&str]) {
    let (_folder, source) = turn.source();
    backdate_all(&source);
    copy_by(program, &source.files(), turn.folder).await;
}

/// A file of its own beside the target, renamed over it.
async fn rsync_keeps_an_older_time(turn: Turn<'_>) {
    copy_backdated(turn, &["rsync", "-t"]).await;
}

async fn rsync_in_place_keeps_an_older_time(turn: Turn<'_>) {
    copy_backdated(turn, &["rsync", "-t", "--inplace"]).await;
}

async fn cp_keeps_an_older_time(turn: Turn<'_>) {
    copy_backdated(turn, &["cp", "-p"]).await;
}

/// Neither the time nor the size tells that anything has changed.
async fn cp_keeps_the_very_same_time(turn: Turn<'_>) {
    let before = turn.pair.files().map(looks);
    copy_backdated(turn, &["cp", "-p"]).await;
    assert_eq!(turn.pair.files().map(looks), before);
}

fn looks(file: &Path) -> (u64, SystemTime) {
    let metadata = fs::metadata(file).expect("a file");
    (metadata.len(), metadata.modified().expect("its time"))
}

async fn install_removes_and_makes_anew(turn: Turn<'_>) {
    let (_folder, source) = turn.source();
    copy_by(&["install", "-m", "600"], &source.files(), turn.folder).await;
}

/// `acme.sh --install-cert`: keeps a backup, then redirects `cat` into the old file, key first.
async fn acme_sh(turn: Turn<'_>) {
    let (_folder, source) = turn.source();
    let [certificate, key] = turn.pair.files();
    for (from, to) in [(&source.key, key), (&source.certificate, certificate)] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "cp \"$2\" \"$2.bak\" && cat \"$1\" >\"$2\"", "-"]);
        shell.arg(from).arg(to);
        command::run(shell).await.assert_success();
    }
}

async fn acme_sh_keeps_the_key(turn: Turn<'_>) {
    acme_sh(turn).await;
}

async fn the_certificate_is_copied_first(turn: Turn<'_>) {
    cp(&turn.new[0].chain_pem(), &turn.pair.certificate).await;
    tokio::time::sleep(GAP).await;
    cp(&turn.new[0].key_pem, &turn.pair.key).await;
}

async fn the_key_is_copied_first(turn: Turn<'_>) {
    cp(&turn.new[0].key_pem, &turn.pair.key).await;
    tokio::time::sleep(GAP).await;
    cp(&turn.new[0].chain_pem(), &turn.pair.certificate).await;
}

fn contents(turn: Turn<'_>) -> [(String, &Path); 2] {
    let [certificate, key] = turn.pair.files();
    let new = &turn.new[0];
    [(new.chain_pem(), certificate), (new.key_pem.clone(), key)]
}

async fn another_file_is_renamed_over(turn: Turn<'_>) {
    for (text, file) in contents(turn) {
        let temporary = file.with_extension("tmp");
        fs::write(&temporary, text).expect("written");
        fs::rename(&temporary, file).expect("renamed");
    }
}

/// As vim does by default: the old file is renamed, the new one is written under its name, and the
/// old one is removed.
async fn an_editor_keeps_a_backup(turn: Turn<'_>) {
    for (text, file) in contents(turn) {
        let backup = file.with_extension("pem~");
        fs::rename(file, &backup).expect("renamed");
        let mut new = fs::File::create(file).expect("a file");
        new.write_all(text.as_bytes()).expect("written");
        new.sync_all().expect("on disk");
        fs::remove_file(&backup).expect("removed");
    }
}

/// 256 bytes at a time, a second and more for each file.
async fn it_is_written_slowly(turn: Turn<'_>) {
    for (text, file) in contents(turn) {
        dribble(&text, file, Duration::from_millis(300)).await;
    }
}

/// The leaf stands there whole, and with the old key even fits, while the rest of its chain is
/// still to come.
async fn the_chain_follows_slowly(turn: Turn<'_>) {
    let new = &turn.new[0];
    let mut file = fs::File::create(&turn.pair.certificate).expect("a file");
    for part in [&new.certificate_pem, &new.intermediate_pem] {
        file.write_all(part.as_bytes()).expect("written");
        tokio::time::sleep(GAP).await;
    }
}

/// As certbot has them: `cert.pem` holds the leaf, `fullchain.pem` the leaf and its intermediate.
fn with_the_leaf_alone(folder: &Path, leaf: &Leaf) -> Pair {
    let pair = Pair::write(folder, leaf);
    fs::write(folder.join("cert.pem"), &leaf.certificate_pem).expect("written");
    pair
}

/// In certbot's order. With the new key the leaf alone is a pair, while the whole chain is not.
async fn the_leaf_alone_comes_first(turn: Turn<'_>) {
    let new = &turn.new[0];
    cp(&new.certificate_pem, &turn.folder.join("cert.pem")).await;
    cp(&new.key_pem, &turn.pair.key).await;
    tokio::time::sleep(GAP).await;
    cp(&new.chain_pem(), &turn.pair.certificate).await;
}

async fn it_is_deleted_and_made_anew(turn: Turn<'_>) {
    turn.pair.remove();
    turn.pair.overwrite(&turn.new[0]);
}

/// Long enough that it was reported. In the drop folder that makes it empty.
async fn it_is_gone_for_a_while(turn: Turn<'_>) {
    turn.pair.remove();
    turn.wait_reported().await;
    turn.pair.overwrite(&turn.new[0]);
}

/// A log file beside the pair is written to all the time.
async fn a_thousand_events_a_second(turn: Turn<'_>) {
    const EVENTS: usize = 1000;
    let log = turn.folder.join("access.log");
    for number in 0..EVENTS {
        fs::write(&log, format!("line {number}\n")).expect("written");
        if number == EVENTS / 2 {
            turn.pair.overwrite(&turn.new[0]);
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}
