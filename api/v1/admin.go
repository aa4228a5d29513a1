package v1

import "time"

// The bodies of the admin socket, which serves the command line on the same host.

// Integrity answers GET /admin/v1/integrity: every record of the key store opens and is
// the newest.
type Integrity struct {
	Records int `json:"records"`
}

// ImportKey is the answer of POST /admin/v1/imports: a public key of one use.
type ImportKey struct {
	ID        string    `json:"id"`
	PublicKey string    `json:"public_key"` // PEM
	Expires   time.Time `json:"expires"`

	// Fingerprint is the SHA-256 of the public key (SubjectPublicKeyInfo), in hex, for people
	// to compare.
	Fingerprint string `json:"fingerprint"`
}

// FinishImport is the body of POST /admin/v1/imports/{id}.
type FinishImport struct {
	NewKey  `json:",inline"`
	Version uint32 `json:"version,omitzero"` // 0: 1. What was sealed elsewhere opens under the index and version that it names
	Blob    []byte `json:"blob"`
}

// NewApp is the body of POST /admin/v1/apps.
type NewApp struct {
	Name    string   `json:"name"`
	AllowIP []string `json:"allow_ip,omitempty"`
	Grants  []string `json:"grants,omitempty"`
	Expires string   `json:"expires,omitempty"` // of the secret, after that long, as 90d; "": never
}

// NewSecret is the body of POST /admin/v1/apps/{app}/rotate-secret.
type NewSecret struct {
	Expires string `json:"expires,omitempty"` // after that long, as 90d; "": never
}

// Certificate is the body of POST /admin/v1/apps/{app}/certificates.
type Certificate struct {
	SPKI string `json:"spki"` // SHA-256 of the SubjectPublicKeyInfo, in hexadecimal
}

// Credentials answer the calls that make a secret. It is shown this once.
type Credentials struct {
	AppKey    string `json:"app_key"`
	AppSecret string `json:"app_secret"`
	Name      string `json:"name"`
}

// AdminApp is an app as administrators see it.
type AdminApp struct {
	Name    string    `json:"name"`
	AppKey  string    `json:"app_key"`
	State   string    `json:"state"` // active or disabled
	AllowIP []string  `json:"allow_ip"`
	Grants  []string  `json:"grants"`
	Secrets int       `json:"secrets"` // valid now
	Created time.Time `json:"created"`
	Rotated time.Time `json:"rotated"`        // when the newest secret was made
	Stale   bool      `json:"stale,omitzero"` // the key store is out of reach: this is what the node knows

	ValidSecrets []AdminSecret `json:"valid_secrets"` // newest last
	Certificates []AdminPin    `json:"certificates"`
	Warnings     []string      `json:"warnings,omitempty"`

	Limit     string     `json:"limit,omitempty"`     // its own rate; "": everybody's
	Budget    string     `json:"budget,omitempty"`    // of what it decrypts
	Spent     *Spent     `json:"spent,omitempty"`     // of the budget
	Suspended *Suspended `json:"suspended,omitempty"` // its decryption, until it is reopened
}

// AdminSecret is one of an app's secrets.
type AdminSecret struct {
	Number  uint32    `json:"number"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Used    time.Time `json:"used,omitzero"` // last, on this node since it was opened
}

// AdminPin is the public key of an app's client certificates.
type AdminPin struct {
	SPKI  string    `json:"spki"`
	Added time.Time `json:"added"`
}

// Spent is what an app has decrypted today (UTC) on the node that answers.
type Spent struct {
	Items         int `json:"items"`
	Conversations int `json:"conversations"`
	Old           int `json:"old"`
}

// Suspended says since when, and by what of its budget, an app may no longer decrypt.
type Suspended struct {
	Why  string    `json:"why"` // items, conversations or age
	Time time.Time `json:"time"`
}

// ReopenApp is the body of POST /admin/v1/apps/{name}/reopen.
type ReopenApp struct {
	Why string `json:"why"`
}

// LimitDefault takes an app's own rate away, so that everybody's holds for it.
const LimitDefault = "default"

// ChangeApp is the body of PATCH /admin/v1/apps/{name}. Each field that is given is
// one change.
type ChangeApp struct {
	AllowIP  string `json:"allow_ip,omitempty"`
	DenyIP   string `json:"deny_ip,omitempty"`
	Grant    string `json:"grant,omitempty"`
	Revoke   string `json:"revoke,omitempty"`
	Disabled *bool  `json:"disabled,omitempty"`
	Limit    string `json:"limit,omitempty"`  // a rate, none, or LimitDefault
	Budget   string `json:"budget,omitempty"` // a budget, or none
}
