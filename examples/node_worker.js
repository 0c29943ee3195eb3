'use strict';
/**
 * A worker without Python: it speaks the frames of docs/reference/frames.md over descriptor 3, with Node alone.
 *
 *     MOLTBOT_WORKER_COMMAND="node $PWD/examples/node_worker.js" moltbot gateway
 *     moltbot send ada "hello from the other side"
 *
 * Three parts: the little msgpack that frames need, the protocol (credit, cancel, one final frame per request), and, at the
 * end, the handlers: the only part that you would write. An async generator's items are streamed; an async function's value
 * is the reply.
 */

const crypto = require('node:crypto');
const fs = require('node:fs/promises');
const net = require('node:net');
const path = require('node:path');

const PROTOCOL = 1;
const MAX_FRAME = 16 << 20;
const WINDOW = 256 << 10;

// --- msgpack: nil, booleans, numbers, text, binary, arrays, maps ---------------------------------------------------

function pack(value, out = []) {
  const head = (tag, size, number) => {
    const bytes = Buffer.alloc(1 + size);
    bytes[0] = tag;
    if (size) bytes.writeUIntBE(number, 1, size);
    out.push(bytes);
  };
  const sized = (number, tags) => {
    for (const [limit, tag, size] of tags) {
      if (number < limit) return head(size ? tag : tag | number, size, number);
    }
    throw new RangeError('too long for msgpack');
  };
  if (value === null || value === undefined) head(0xc0, 0);
  else if (typeof value === 'boolean') head(value ? 0xc3 : 0xc2, 0);
  else if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) {
    sized(value, [[128, 0x00, 0], [256, 0xcc, 1], [65536, 0xcd, 2], [2 ** 32, 0xce, 4]]);
  } else if (typeof value === 'bigint' || Number.isSafeInteger(value)) {
    const bytes = Buffer.alloc(9);
    const positive = value >= 0;
    bytes[0] = positive ? 0xcf : 0xd3;
    if (positive) bytes.writeBigUInt64BE(BigInt(value), 1);
    else bytes.writeBigInt64BE(BigInt(value), 1);
    out.push(bytes);
  } else if (typeof value === 'number') {
    const bytes = Buffer.alloc(9);
    bytes[0] = 0xcb;
    bytes.writeDoubleBE(value, 1);
    out.push(bytes);
  } else if (typeof value === 'string') {
    const bytes = Buffer.from(value);
    sized(bytes.length, [[32, 0xa0, 0], [256, 0xd9, 1], [65536, 0xda, 2], [2 ** 32, 0xdb, 4]]);
    out.push(bytes);
  } else if (Buffer.isBuffer(value)) {
    sized(value.length, [[256, 0xc4, 1], [65536, 0xc5, 2], [2 ** 32, 0xc6, 4]]);
    out.push(value);
  } else if (Array.isArray(value)) {
    sized(value.length, [[16, 0x90, 0], [65536, 0xdc, 2], [2 ** 32, 0xdd, 4]]);
    for (const item of value) pack(item, out);
  } else if (typeof value === 'object') {
    const entries = value instanceof Map ? [...value] : Object.entries(value);
    sized(entries.length, [[16, 0x80, 0], [65536, 0xde, 2], [2 ** 32, 0xdf, 4]]);
    for (const [key, item] of entries) {
      pack(key, out);
      pack(item, out);
    }
  } else throw new TypeError(`msgpack cannot carry a ${typeof value}`);
  return out;
}

function unpack(bytes) {
  let at = 0;
  const uint = (size) => {
    at += size;
    return bytes.readUIntBE(at - size, size);
  };
  const wide = (read) => {
    at += 8;
    const value = read.call(bytes, at - 8);
    return typeof value === 'number' || !Number.isSafeInteger(Number(value)) ? value : Number(value);
  };
  const slice = (size) => {
    if (at + size > bytes.length) throw new RangeError('a value is cut short');
    at += size;
    return bytes.subarray(at - size, at);
  };
  const text = (size) => slice(size).toString();
  const array = (size) => Array.from({ length: size }, () => value());
  const map = (size) => {
    const result = Object.create(null);
    for (let i = 0; i < size; i++) {
      const key = value();
      result[key] = value();
    }
    return result;
  };
  const signed = (size) => {
    at += size;
    return bytes.readIntBE(at - size, size);
  };
  const value = () => {
    const tag = uint(1);
    if (tag < 0x80) return tag;
    if (tag < 0x90) return map(tag & 15);
    if (tag < 0xa0) return array(tag & 15);
    if (tag < 0xc0) return text(tag & 31);
    if (tag >= 0xe0) return tag - 256;
    switch (tag) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return slice(uint(1));
      case 0xc5: return slice(uint(2));
      case 0xc6: return slice(uint(4));
      case 0xca: at += 4; return bytes.readFloatBE(at - 4);
      case 0xcb: return wide(bytes.readDoubleBE);
      case 0xcc: return uint(1);
      case 0xcd: return uint(2);
      case 0xce: return uint(4);
      case 0xcf: return wide(bytes.readBigUInt64BE);
      case 0xd0: return signed(1);
      case 0xd1: return signed(2);
      case 0xd2: return signed(4);
      case 0xd3: return wide(bytes.readBigInt64BE);
      case 0xd9: return text(uint(1));
      case 0xda: return text(uint(2));
      case 0xdb: return text(uint(4));
      case 0xdc: return array(uint(2));
      case 0xdd: return array(uint(4));
      case 0xde: return map(uint(2));
      case 0xdf: return map(uint(4));
      default: throw new TypeError(`msgpack tag 0x${tag.toString(16)} is not used in frames`);
    }
  };
  const result = value();
  if (at !== bytes.length) throw new RangeError('bytes are left after the value');
  return result;
}

// --- the protocol -----------------------------------------------------------------------------------------------------

const socket = new net.Socket({ fd: 3, readable: true, writable: true });
const users = new Map(); // the loaded users: id -> { epoch, directories }
const calls = new Map(); // the open requests: id -> Call
let config = null;
let draining = false;

class Cancelled extends Error {}

function encode(frame) {
  const body = Buffer.concat(pack(frame));
  if (body.length > MAX_FRAME) throw new RangeError(`a frame of ${body.length} bytes is over the limit`);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, body]);
}

const send = (frame) => socket.write(encode(frame));

/** One request, from its frame to its one final frame. Streamed frames cost credit; final frames are free. */
class Call {
  constructor({ id, type, user_id: userId, payload }) {
    Object.assign(this, { id, type, userId, payload, usage: {}, credit: WINDOW, cancelled: false, wake: null });
    this.user = users.get(userId);
  }

  /** Stream a frame of kind chunk, event or usage; waits while there is no credit. */
  async stream(kind, fields) {
    const bytes = encode({ kind, id: this.id, ...fields });
    while (this.credit <= 0 && !this.cancelled) await new Promise((resolve) => { this.wake = resolve; });
    if (this.cancelled) throw new Cancelled();
    this.credit -= bytes.length - 4; // may go below zero by this one frame
    socket.write(bytes);
  }

  async reportUsage(amounts) {
    Object.assign(this.usage, amounts);
    await this.stream('usage', { amounts });
  }

  granted(bytes) {
    this.credit += bytes;
    if (this.wake) this.wake();
  }

  cancel() {
    this.cancelled = true;
    if (this.wake) this.wake();
  }

  async run() {
    let final;
    try {
      const result = handlers[this.type](this);
      let payload = null;
      if (Symbol.asyncIterator in result) {
        for await (const data of result) await this.stream('chunk', { data });
      } else payload = await result;
      if (this.cancelled) throw new Cancelled();
      final = { kind: 'reply', id: this.id, payload, usage: this.usage };
    } catch (error) {
      const [code, message] = error instanceof Cancelled
        ? ['cancelled', 'the request was cancelled by its caller']
        : ['handler_error', `${error.name}: ${error.message}`];
      if (code === 'handler_error') console.error(error);
      final = { kind: 'error', id: this.id, code, message };
    }
    calls.delete(this.id);
    send(final);
    tellIfDrained();
  }
}

function tellIfDrained() {
  if (draining && calls.size === 0) {
    draining = false;
    send({ kind: 'drained' });
  }
}

const on = {
  hello({ v, config: given }) {
    if (v !== PROTOCOL) {
      const message = `the gateway speaks protocol ${v}, this worker ${PROTOCOL}`;
      send({ kind: 'error', id: 0, code: 'boot_failed', message });
      socket.end();
      return;
    }
    config = given;
    send({ kind: 'ready', v: PROTOCOL, pid: process.pid, handlers: Object.keys(handlers).sort() });
    let due = Date.now();
    const beat = () => {
      const now = Date.now();
      send({ kind: 'beat', lag_ms: Math.max(0, now - due), in_flight: calls.size, at: now / 1000 });
      due = now + config.heartbeat_interval_ms;
    };
    beat();
    setInterval(beat, config.heartbeat_interval_ms);
  },
  request(frame) {
    const user = users.get(frame.user_id);
    const refuse = (code, message) => send({ kind: 'error', id: frame.id, code, message });
    if (!Object.hasOwn(handlers, frame.type)) {
      refuse('unknown_type', `no handler answers type ${frame.type}: there is ${Object.keys(handlers).join(', ')}`);
    } else if (user === undefined || user.epoch !== frame.epoch) {
      refuse('not_loaded', 'the user is not loaded here under this epoch');
    } else {
      const call = new Call(frame);
      calls.set(frame.id, call);
      call.run();
    }
  },
  cancel: ({ id }) => calls.get(id)?.cancel(), // unknown: it crossed our final frame on the way
  credit: ({ id, n }) => calls.get(id)?.granted(n),
  arrive({ user_id: userId, epoch }) {
    const own = (part) => path.join(config.directories[part], userKey(userId));
    users.set(userId, { epoch, stateDir: own('state'), sessionDir: own('sessions') });
    send({ kind: 'arrived', user_id: userId, epoch });
  },
  leave({ user_id: userId }) {
    const { epoch = 0 } = users.get(userId) ?? {};
    users.delete(userId);
    send({ kind: 'left', user_id: userId, epoch });
  },
  ping: () => send({ kind: 'pong' }),
  drain() {
    draining = true;
    tellIfDrained();
  },
  shutdown: () => process.exit(0),
};

let buffered = Buffer.alloc(0);
socket.on('data', (data) => {
  buffered = buffered.length ? Buffer.concat([buffered, data]) : data;
  while (buffered.length >= 4) {
    const end = 4 + buffered.readUInt32BE();
    if (end - 4 > MAX_FRAME) throw new RangeError('a frame over the limit was announced');
    if (buffered.length < end) break;
    const frame = unpack(buffered.subarray(4, end));
    buffered = buffered.subarray(end);
    if (!Object.hasOwn(on, frame.kind)) throw new TypeError(`a frame of unknown kind ${frame.kind}`);
    on[frame.kind](frame);
  }
});
socket.on('end', () => process.exit(0)); // the gateway is gone
socket.on('error', () => process.exit(1));

/** The directory name of a user: the rules are in docs/reference/frames.md. */
function userKey(userId) {
  const raw = Buffer.from(userId);
  const plain = /[a-z0-9\-_.@]/;
  let name = '';
  for (const byte of raw) {
    const char = String.fromCharCode(byte);
    name += byte < 128 && plain.test(char) ? char : `%${byte.toString(16).padStart(2, '0')}`;
  }
  if (name.startsWith('.')) name = `%2e${name.slice(1)}`;
  if (name.length <= 200) return name;
  return `${name.slice(0, 100)}~${crypto.createHash('sha256').update(raw).digest('hex')}`;
}

// --- the handlers -----------------------------------------------------------------------------------------------------

const handlers = {
  /** Answer `{"message": text}` word by word, and count the turns in the user's own directory. */
  async *agent(call) {
    const message = String(call.payload?.message ?? '');
    const file = path.join(call.user.stateDir, 'turns.json');
    const turns = (await readJson(file, 0)) + 1;
    yield `${process.env.MOLTBOT_WORKER_ID} runs Node, turn ${turns} with you.`;
    for (const word of `You said: ${message}`.split(' ')) yield ` ${word}`;
    await writeJson(file, turns);
    await call.reportUsage({ words: message.split(' ').length });
  },

  async health() {
    return { ok: true, runtime: `node ${process.version}` };
  },
};

async function readJson(file, otherwise) {
  try {
    return JSON.parse(await fs.readFile(file, 'utf8'));
  } catch (error) {
    if (error.code === 'ENOENT') return otherwise;
    throw error; // a damaged file is an error, never an empty one
  }
}

/** Replace the file whole: a crash leaves the old one or the new one. */
async function writeJson(file, value) {
  await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  await fs.writeFile(`${file}.new`, JSON.stringify(value), { mode: 0o600 });
  await fs.rename(`${file}.new`, file);
}
