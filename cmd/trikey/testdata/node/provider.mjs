// An OpenID Connect provider at a loopback port, with two clients. After GET /swap, the
// client trikey is given the newest ID token of the client other, as a provider would that
// mixes them up.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const client = (id) => ({
    client_id: id,
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    redirect_uris: ['http://127.0.0.1/callback'],
    response_types: ['code'],
    grant_types: ['authorization_code'],
  });
  const provider = new Provider(issuer, { clients: [client('trikey'), client('other')], pkce: { required: () => true } });
  let swap = false;
  let others = '';
  provider.use(async (ctx, next) => {
    if (ctx.path === '/swap') {
      swap = true;
      ctx.body = 'ok';
      return;
    }
    await next();
    if (ctx.path !== '/token' || !ctx.body.id_token) return;
    const { aud } = JSON.parse(Buffer.from(ctx.body.id_token.split('.')[1], 'base64url'));
    if (aud === 'other') others = ctx.body.id_token;
    else if (swap) ctx.body = { ...ctx.body, id_token: others };
  });
  server.on('request', provider.callback());
  console.log(`issuer ${issuer}`);
});
