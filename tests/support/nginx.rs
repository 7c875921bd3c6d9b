//! A real nginx as an upstream.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use super::command;
use super::place::Place;
use super::wait::{SOON, wait_until};

/// Killed when dropped.
pub struct Nginx {
    pub addr: SocketAddr,
    child: Child,
}

impl Nginx {
    /// Answers every path with the text `nginx PATH`, but `/www/` with the files in `nginx/www` of
    /// the place. Bodies may be of any size.
    pub async fn start(place: &Place) -> Nginx {
        let program = command::find("nginx").expect(
            "this test needs nginx: install it with `apt-get install nginx-light` (make test does)",
        );
        let addr = place.free();
        let folder = place.path("nginx");
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = place.write("nginx/nginx.conf", configuration(addr));
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(file)
            .args(["-e", "stderr"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("nginx starts");
        let nginx = Nginx { addr, child };
        wait_until(SOON, "nginx", async || TcpStream::connect(addr).await.ok()).await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process in the foreground: killing it leaves nothing behind.
fn configuration(addr: SocketAddr) -> String {
    format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{ listen {addr}; location / {{ return 200 \"nginx $request_uri\"; }}
    location /www/ {{ root .; }} }}
}}
"
    )
}
