// An upstream in Node: the same application over HTTP/1.1, HTTP/2 by prior knowledge and HTTP/2 over
// TLS, and a WebSocket that sends back what it gets, by whichever way it was opened.
"use strict";
const [host, h1, h2c, h2, either, key, cert] = process.argv.slice(2);
const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const http2 = require("http2");

let connections = 0;

function answer(request, response) {
  const path = request.url.split("?")[0];
  switch (path) {
    case "/connection":
      return response.end(`${request.socket.remotePort} of ${connections}`);
    case "/close":
      // After this answer the connection is gone, without a word before.
      response.on("finish", () => setImmediate(() => request.socket.destroy()));
      return response.end("closing");
    case "/echo":
      response.writeHead(200, { "content-type": "application/octet-stream" });
      response.flushHeaders?.();
      return request.pipe(response);
    case "/trailers": {
      const hash = crypto.createHash("sha256");
      response.writeHead(200, { trailer: "x-sum, x-told" });
      request.on("data", (data) => {
        hash.update(data);
        response.write(data);
      });
      return request.on("end", () => {
        const told = request.trailers["x-told"] ?? "nothing";
        response.addTrailers({ "x-sum": hash.digest("hex"), "x-told": told });
        response.end();
      });
    }
    case "/hints":
      response.writeEarlyHints({ link: "</a.css>; rel=preload" });
      return response.end("hinted");
    case "/204":
      return response.writeHead(204).end();
    case "/304":
      return response.writeHead(304, { etag: '"a"' }).end();
    default: {
      const seen = { method: request.method, url: request.url, version: request.httpVersion };
      const host = request.headers.host ?? request.headers[":authority"];
      const by = request.headers["x-forwarded-proto"];
      const body = JSON.stringify({ ...seen, host, by });
      response.setHeader("content-length", Buffer.byteLength(body));
      return response.end(body);
    }
  }
}

function expected(request, response) {
  if (request.url === "/refused") {
    response.writeHead(413, { "content-length": 3 });
    return response.end("no\n");
  }
  response.writeContinue();
  answer(request, response);
}

// Frames of clients (RFC 6455 section 5.2), short ones, sent back unmasked.
function echoFrames(socket) {
  let rest = Buffer.alloc(0);
  socket.on("error", () => {});
  socket.on("data", (data) => {
    rest = Buffer.concat([rest, data]);
    while (rest.length >= 6) {
      const length = rest[1] & 0x7f;
      if (rest.length < 6 + length) return;
      const text = Buffer.from(rest.subarray(6, 6 + length));
      for (let at = 0; at < length; at++) text[at] ^= rest[2 + (at % 4)];
      socket.write(Buffer.concat([Buffer.from([rest[0], length]), text]));
      rest = rest.subarray(6 + length);
    }
  });
  socket.on("end", () => socket.end());
}

function upgrade(request, socket) {
  const magic = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
  const accept = crypto.createHash("sha1");
  accept.update(request.headers["sec-websocket-key"] + magic);
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
      `Sec-WebSocket-Accept: ${accept.digest("base64")}\r\n\r\n`,
  );
  echoFrames(socket);
}

// RFC 8441: an extended CONNECT.
function connect({ stream, headers }) {
  if (headers[":protocol"] !== "websocket" || headers[":path"] === "/forbidden") {
    stream.respond({ ":status": 403 });
    return stream.end("no");
  }
  stream.respond({ ":status": 200, "x-scheme": headers[":scheme"] });
  echoFrames(stream);
}

const plain = http.createServer({ keepAliveTimeout: 60000 }, answer);
plain.on("connection", () => connections++);
plain.on("checkContinue", expected);
plain.on("upgrade", upgrade);
plain.listen(h1, host);

const settings = { enableConnectProtocol: true };
const identity = { key: fs.readFileSync(key), cert: fs.readFileSync(cert) };
const multiplexed = [
  [http2.createServer({ settings }), h2c],
  [http2.createSecureServer({ settings, ...identity }), h2],
  // Its WebSockets are to be had over HTTP/1.1 alone.
  [http2.createSecureServer({ allowHTTP1: true, ...identity }), either],
];
for (const [server, port] of multiplexed) {
  server.on("request", answer);
  server.on("checkContinue", expected);
  server.on("connect", connect);
  server.on("upgrade", upgrade);
  server.listen(port, host);
}
