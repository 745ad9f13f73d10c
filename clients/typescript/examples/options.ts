import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { create } from "@bufbuild/protobuf";

import { ChatRole, GenerateRequestSchema, type ConnectionOptions, type GenerateRequest } from "../src/index.js";

export interface Options {
  address: string;
  connection: ConnectionOptions;
  request: GenerateRequest;
  timeoutMs?: number;
}

/** What the user can mend on the command line. */
export class InputError extends Error {}

const DESCRIPTIONS: Record<string, [placeholder: string, description: string]> = {
  address: ["HOST:PORT", "the server, or unix:PATH (default: 127.0.0.1:50051)"],
  prompt: ["TEXT", "what to answer"],
  raw: ["", "continue the prompt as it is, without the model's chat template"],
  "max-tokens": ["N", "most tokens to make"],
  temperature: ["T", "softmax temperature; 0 is greedy"],
  seed: ["N", "makes the text reproducible"],
  timeout: ["SECONDS", "give up after this time"],
  tls: ["", "encrypt, and trust the system's authorities"],
  "tls-ca": ["FILE", "encrypt, and trust the authorities in this file (PEM)"],
  "tls-client-cert": ["FILE", "encrypt, and show this certificate (PEM)"],
  "tls-client-key": ["FILE", "its key (PEM)"],
  "api-key-file": ["FILE", "file with the API key (default: the environment's QSPEC_API_KEY)"],
  insecure: ["", "let the API key leave this machine in plain text"],
  help: ["", "show this"],
};

export function help(): string {
  const lines = Object.entries(DESCRIPTIONS).map(([name, [placeholder, description]]) =>
    `  ${`--${name} ${placeholder}`.padEnd(26)}${description}`);
  return ["node generate.js --prompt TEXT [options]", ...lines].join("\n");
}

/** The options, or undefined where help is asked for. Throws `InputError`. */
export function parse(args: string[]): Options | undefined {
  const given = readArguments(args);
  if (given["help"] !== undefined) {
    return undefined;
  }
  const prompt = given["prompt"];
  if (!prompt) {
    throw new InputError("--prompt: give at least one character");
  }
  const request = create(GenerateRequestSchema, {
    prompt: given["raw"] !== undefined
      ? { case: "text", value: prompt }
      : { case: "chat", value: { messages: [{ role: ChatRole.USER, content: prompt }] } },
  });
  if (given["max-tokens"] !== undefined) {
    request.maxTokens = Number(wholeNumber("--max-tokens", given["max-tokens"], 32n));
  }
  if (given["seed"] !== undefined) {
    request.seed = wholeNumber("--seed", given["seed"], 64n);
  }
  if (given["temperature"] !== undefined) {
    request.temperature = number("--temperature", given["temperature"]);
  }
  const options: Options = { address: given["address"] ?? "127.0.0.1:50051", connection: connection(given), request };
  if (given["timeout"] !== undefined) {
    const seconds = number("--timeout", given["timeout"]);
    if (!(seconds > 0 && seconds < 1e9)) {
      throw new InputError(`--timeout: must be a number of seconds above 0, got ${seconds}`);
    }
    options.timeoutMs = seconds * 1000;
  }
  return options;
}

function readArguments(args: string[]): Record<string, string | undefined> {
  const takesValue = ([, [placeholder]]: [string, [string, string]]): boolean => placeholder !== "";
  const options = Object.fromEntries(Object.entries(DESCRIPTIONS).map(
    (entry) => [entry[0], { type: takesValue(entry) ? "string" : "boolean" } as const]));
  // parseArgs takes "--temperature -1" for two options unless they are joined.
  const joined: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const name = args[i]!;
    const joins = name.startsWith("--") && options[name.slice(2)]?.type === "string" && i + 1 < args.length;
    joined.push(joins ? `${name}=${args[++i]!}` : name);
  }
  try {
    const { values } = parseArgs({ args: joined, options, strict: true });
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, String(value)]));
  } catch (error) {
    throw new InputError((error as Error).message.split("\n", 1)[0]);
  }
}

function connection(given: Record<string, string | undefined>): ConnectionOptions {
  const file = (name: string): Buffer | undefined => {
    const path = given[name];
    try {
      return path === undefined ? undefined : readFileSync(path);
    } catch (error) {
      throw new InputError(`--${name}: ${(error as Error).message}`);
    }
  };
  const [ca, certificate, key] = [file("tls-ca"), file("tls-client-cert"), file("tls-client-key")];
  if ((certificate === undefined) !== (key === undefined)) {
    throw new InputError("--tls-client-cert and --tls-client-key go together");
  }
  const apiKey = file("api-key-file")?.toString("utf8").trim() ?? process.env["QSPEC_API_KEY"];
  return {
    ...(apiKey ? { apiKey } : {}),
    ...(given["insecure"] !== undefined ? { insecure: true } : {}),
    ...(ca ?? certificate ?? given["tls"] !== undefined
      ? { tls: { ...(ca && { ca }), ...(certificate && { certificate }), ...(key && { key }) } }
      : {}),
  };
}

function wholeNumber(option: string, text: string, bits: bigint): bigint {
  if (!/^\d+$/.test(text) || BigInt(text) >> bits !== 0n) {
    throw new InputError(`${option}: must be a whole number from 0 to ${(1n << bits) - 1n}, got ${text}`);
  }
  return BigInt(text);
}

function number(option: string, text: string): number {
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value)) {
    throw new InputError(`${option}: must be a number, got ${text}`);
  }
  return value;
}
