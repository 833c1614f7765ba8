// Streams one generation: node generate.mjs ADDRESS PROMPT [MAX_TOKENS]
// Without .proto files: it gets the services and their types from the server by reflection. It prints JSON lines:
// {"services": [...]}, then each message received.
import grpc from "@grpc/grpc-js";
import { GrpcReflection } from "grpc-js-reflection-client";

const SERVICE = "fiddler.v1.GenerationService";
const DEADLINE_SECONDS = 60;
// proto names and all fields, as the Python client prints them
const NAMES = { keepCase: true, enums: String, longs: String, defaults: true, oneofs: true };

const print = (value) => process.stdout.write(JSON.stringify(value) + "\n");

async function connect(address) {
  const credentials = grpc.credentials.createInsecure();
  const reflection = new GrpcReflection(address, credentials);
  print({ services: await reflection.listServices() });
  const descriptor = await reflection.getDescriptorBySymbol(SERVICE);
  const packages = descriptor.getPackageObject(NAMES);
  const Service = SERVICE.split(".").reduce((scope, name) => scope[name], packages);
  return new Service(address, credentials);
}

async function main(address, prompt, maxTokens) {
  const client = await connect(address);
  const deadline = Date.now() + DEADLINE_SECONDS * 1000;
  for await (const message of client.Generate({ text: prompt, max_tokens: Number(maxTokens) }, { deadline })) {
    print(message);
  }
  client.close();
}

const [address, prompt, maxTokens = 8] = process.argv.slice(2);
if (prompt === undefined) {
  console.error("usage: node generate.mjs ADDRESS PROMPT [MAX_TOKENS]");
  process.exit(2);
}
try {
  await main(address, prompt, maxTokens);
  process.exit(0); // the reflection client has no way to close its channel
} catch (error) {
  console.error(`generate.mjs: ${error.message}`);
  process.exit(1);
}
