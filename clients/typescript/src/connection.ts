import { credentials, Metadata, type ChannelCredentials } from "@grpc/grpc-js";

/** PEM texts; what is left out is the system's (the authorities) or not shown (certificate and key). */
export interface TlsOptions {
  /** Authorities to trust. */
  ca?: Buffer;
  /** This client's certificate, where the server demands one. */
  certificate?: Buffer;
  /** Its key. */
  key?: Buffer;
}

/** How a server is reached. Left empty: in plain text, without a key. */
export interface ConnectionOptions {
  /** Encrypt. */
  tls?: TlsOptions;
  /** Sent with every call ("authorization: Bearer …"). */
  apiKey?: string;
  /** Let the key leave this machine in plain text, which is refused otherwise. */
  insecure?: boolean;
  /** Tells this client's requests from those of others at the same address; the server is fair between clients. */
  clientId?: string;
}

/** Throws `TypeError` for what is neither `HOST:PORT` nor `unix:PATH`, and where the key would leave in plain text. */
export function checkConnection(address: string, options: ConnectionOptions): void {
  if (address.startsWith("unix:")) {
    return;
  }
  const host = /^(.+):\d{1,5}$/.exec(address)?.[1];
  if (host === undefined) {
    throw new TypeError(`${JSON.stringify(address)} is no address; write HOST:PORT or unix:PATH`);
  }
  const local = host === "localhost" || host === "[::1]" || /^127(\.\d{1,3}){3}$/.test(host);
  if (options.apiKey !== undefined && options.tls === undefined && !options.insecure && !local) {
    throw new TypeError("the API key would leave this machine in plain text: use TLS, or say that this is wanted (insecure)");
  }
}

export function channelCredentials({ tls }: ConnectionOptions): ChannelCredentials {
  return tls === undefined
    ? credentials.createInsecure()
    : credentials.createSsl(tls.ca ?? null, tls.key ?? null, tls.certificate ?? null);
}

export function callMetadata({ apiKey, clientId }: ConnectionOptions): Metadata {
  const metadata = new Metadata();
  if (apiKey !== undefined) {
    metadata.set("authorization", `Bearer ${apiKey}`);
  }
  if (clientId !== undefined) {
    metadata.set("qspec-client-id", clientId);
  }
  return metadata;
}
