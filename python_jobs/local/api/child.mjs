// A program that serves HTTP behind a Unix socket, as a child of this process, and requests to it.
import { spawn } from "node:child_process";
import { Agent, request as send } from "node:http";

// The child ends with this process, also where a SIGKILL leaves no time to end it: the pipe closes then.
const WATCHED = `
  exec 3<&0
  folder=$0
  "$@" & child=$!
  { read -r _ <&3; kill $child; } &
  wait $child; status=$?
  rm -r "$folder"
  exit $status`;

// folder: the child's own, with its socket. It goes when the child ends.
export const startChild = (command, env, folder) =>
  spawn("/bin/sh", ["-c", WATCHED, folder, ...command], { env, stdio: ["pipe", "inherit", "inherit"] });

// An idle connection is given up before the child does so, after 30 s: never under a request.
export const createAgent = () => new Agent({ keepAlive: true, timeout: 10_000 });

// Forwards a request to the socket, and its answer back. failed(error): answers where no answer came.
// hasBody: whether the child gets the body; one that refuses without reading it gets none.
export const forward = (request, response, { agent, socketPath, path, headers, hasBody = true, failed }) => {
  const upstream = send({ agent, socketPath, method: request.method, path, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.on("error", () => response.destroy());
    answer.pipe(response);
    // What is sent after the answer is read and forgotten, or the client would wait to send it.
    answer.on("end", () => request.unpipe(upstream).resume());
  });
  upstream.on("error", (error) => {
    if (!response.headersSent) failed(error);
  });
  response.on("close", () => response.writableFinished || upstream.destroy());
  if (hasBody) request.pipe(upstream);
  else upstream.end();
};
