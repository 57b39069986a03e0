// Preloaded into a peer that can only listen on every interface: while it is measured it listens on the loopback alone.
const { Server } = require("node:net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...others) {
  if (typeof port === "number") return listen.call(this, { port, host: "127.0.0.1" }, ...others.filter((it) => typeof it === "function"));
  if (port !== null && typeof port === "object" && "port" in port) port = { ...port, host: "127.0.0.1" };
  return listen.call(this, port, ...others);
};
