// Loaded into NNI's web server by NODE_OPTIONS=--require, see nni_server.py.
//
// NNI 3.0 calls `app.listen(port)`, which listens on every interface, has no login, and starts whatever command it is
// sent. Here everything that would listen on every interface listens on loopback. The server also stops its trials and
// itself when its supervisor, `proxyless experiment`, is gone, even if that was killed and could not stop it.
"use strict";
const { Server } = require("net");
const listen = Server.prototype.listen;
const isPort = (value) => typeof value === "number" || (typeof value === "string" && /^[0-9]+$/.test(value));
Server.prototype.listen = function (...args) {
  if (isPort(args[0])) {
    // listen(port[, host][, ...]): a host that is given is replaced, else one is inserted.
    args.splice(1, typeof args[1] === "string" ? 1 : 0, "127.0.0.1");
  } else if (args[0] !== null && typeof args[0] === "object" && isPort(args[0].port)) {
    args[0] = { ...args[0], host: "127.0.0.1" };
  }
  return listen.apply(this, args);
};
const supervisor = Number(process.env.PROXYLESS_SUPERVISOR);
if (supervisor) {
  const watch = setInterval(() => {
    try {
      // Signal 0 is not sent: it asks whether the process is there.
      process.kill(supervisor, 0);
    } catch {
      clearInterval(watch);
      // NNI stops its trials on SIGTERM; process.exit() would leave them behind.
      process.kill(process.pid, "SIGTERM");
    }
  }, 2000);
  // A timer that is not unref'd would keep every other node process alive that inherits NODE_OPTIONS.
  watch.unref();
}
