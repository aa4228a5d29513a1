// Signs one request as RFC 9421 has it, by a library that is not ours, and prints the answer.
// node call.cjs URL APPKEY SECRETFILE CAFILE [BODY]
const { createHash, randomUUID } = require('node:crypto');
const { readFileSync } = require('node:fs');
const https = require('node:https');
const { httpbis: { signMessage }, createSigner } = require('http-message-signatures');

async function main([url, appKey, secretFile, caFile, body]) {
  const request = { method: body ? 'POST' : 'GET', url, headers: {} };
  const fields = ['@method', '@target-uri'];
  if (body) {
    request.headers['Content-Type'] = 'application/json';
    request.headers['Content-Digest'] = `sha-512=:${createHash('sha512').update(body).digest('base64')}:`;
    fields.push('content-digest');
  }
  const signed = await signMessage({
    key: createSigner(readFileSync(secretFile, 'utf8').trim(), 'hmac-sha256', appKey),
    name: 'trikey', fields, params: ['created', 'nonce', 'keyid', 'alg'], paramValues: { nonce: randomUUID() },
  }, request);
  const sent = https.request(url, { method: signed.method, headers: signed.headers, ca: readFileSync(caFile) }, (answer) => {
    let text = '';
    answer.on('data', (part) => { text += part; });
    answer.on('end', () => process.stdout.write(JSON.stringify({ status: answer.statusCode, body: JSON.parse(text) })));
  });
  sent.end(body);
}

main(process.argv.slice(2)).catch((err) => { console.error(err); process.exit(1); });
