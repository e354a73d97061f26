// better-sse on Node: a channel, as in its documentation. The first argument is the path of the module.
import { createServer } from "node:http";

const { createChannel, createSession } = await import(process.argv[2]);
const channel = createChannel();

const server = createServer(async (request, response) => {
    if (request.method === "GET") {
        channel.register(await createSession(request, response, { keepAlive: null, serializer: String }));
        return;
    }
    let body = "";
    for await (const part of request) body += part;
    if (request.url === "/collect") global.gc();
    else for (const data of body.split("\n")) channel.broadcast(data);
    response.writeHead(204).end();
});
server.keepAliveTimeout = 0;
server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => console.log(server.address().port));
