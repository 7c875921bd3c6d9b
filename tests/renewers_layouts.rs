//! New pairs that arrive by a link or a folder that changes, not by a file that is written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::renewers::{Row, Turn};
use crate::rows;
use crate::support::certs::Leaf;
use crate::support::writers::{Pair, SecretVolume};

rows! {
    a_secret_volume_is_swapped: Row::PAIR.built_by(secret_volume);
    a_secret_volume_keeps_the_key: Row::PAIR.built_by(secret_volume).same_key();
    a_csi_volume_is_swapped_again_and_again: Row::PAIR.built_by(secret_volume).replaced(8);
    a_whole_folder_is_renamed_over: Row::PAIR;
    the_folder_above_is_renamed_over: Row::PAIR;
    a_link_to_the_folder_is_swapped: Row::PAIR.built_by(release);
    a_link_leads_nowhere_for_a_while: Row::PAIR.built_by(links);
    a_link_leads_nowhere_until_it_was_reported: Row::PAIR.built_by(links);
}

fn secret_volume(folder: &Path, leaf: &Leaf) -> Pair {
    SecretVolume::new(folder, leaf).pair()
}

async fn a_secret_volume_is_swapped(turn: Turn<'_>) {
    SecretVolume::at(turn.folder).update(&turn.new[0]);
}

async fn a_secret_volume_keeps_the_key(turn: Turn<'_>) {
    a_secret_volume_is_swapped(turn).await;
}

/// As a CSI driver does whose certificates live for seconds. Whatever generation is served, its
/// certificate and its key are of the same one.
async fn a_csi_volume_is_swapped_again_and_again(turn: Turn<'_>) {
    let mut volume = SecretVolume::at(turn.folder);
    for leaf in turn.new {
        volume.update(leaf);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn a_whole_folder_is_renamed_over(turn: Turn<'_>) {
    let beside = |suffix| turn.folder.with_extension(suffix);
    Pair::write(&beside("new"), &turn.new[0]);
    fs::rename(turn.folder, beside("old")).expect("renamed");
    fs::rename(beside("new"), turn.folder).expect("renamed");
}

async fn the_folder_above_is_renamed_over(turn: Turn<'_>) {
    let above = turn.folder.parent().expect("a folder");
    let beside = |suffix| above.with_extension(suffix);
    Pair::write(&beside("new").join("tls"), &turn.new[0]);
    fs::rename(above, beside("old")).expect("renamed");
    fs::rename(beside("new"), above).expect("renamed");
}

/// `tls -> tls.releases/1`
fn release(folder: &Path, leaf: &Leaf) -> Pair {
    Pair::write(&folder.with_extension("releases").join("1"), leaf);
    symlink("tls.releases/1", folder).expect("a link");
    Pair::at(folder)
}

async fn a_link_to_the_folder_is_swapped(turn: Turn<'_>) {
    let releases = turn.folder.with_extension("releases");
    Pair::write(&releases.join("2"), &turn.new[0]);
    relink(Path::new("tls.releases/2"), turn.folder);
}

/// `fullchain.pem -> ../store/1/fullchain.pem`, and the key likewise.
fn links(folder: &Path, leaf: &Leaf) -> Pair {
    fs::create_dir_all(folder).expect("a folder");
    Pair::write(&stored(folder, "1"), leaf);
    relink_pair(folder, "1");
    Pair::at(folder)
}

fn stored(folder: &Path, version: &str) -> PathBuf {
    folder.with_file_name("store").join(version)
}

fn relink_pair(folder: &Path, version: &str) {
    let target = Pair::at(&Path::new("../store").join(version));
    for (target, link) in target.files().into_iter().zip(Pair::at(folder).files()) {
        relink(target, link);
    }
}

/// `ln -sfn`: one rename.
fn relink(target: &Path, link: &Path) {
    let temporary = link.with_extension("link");
    symlink(target, &temporary).expect("a link");
    fs::rename(&temporary, link).expect("renamed");
}

/// The links are there before what they lead to, and the folder that holds that, too.
async fn a_link_leads_nowhere_for_a_while(turn: Turn<'_>) {
    relink_pair(turn.folder, "2");
    tokio::time::sleep(Duration::from_millis(500)).await;
    Pair::write(&stored(turn.folder, "2"), &turn.new[0]);
}

async fn a_link_leads_nowhere_until_it_was_reported(turn: Turn<'_>) {
    relink_pair(turn.folder, "2");
    turn.wait_reported().await;
    Pair::write(&stored(turn.folder, "2"), &turn.new[0]);
}
