package v1

import "time"

// Login is the body of POST /admin/v1/login.
type Login struct {
	Name     string `json:"name"`
	Password []byte `json:"password"` // UTF-8; in base64, as all bytes
	Code     string `json:"code"`     // RFC 6238
}

// Session answers a login, with the token that is shown this once, and GET
// /admin/v1/session. The token is sent as a bearer token (RFC 6750, section 2.1).
type Session struct {
	Token   string    `json:"token,omitempty"`
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Expires time.Time `json:"expires"`
	StepUp  time.Time `json:"step_up_until,omitzero"` // until then nothing asks for another code
}

// Enrol is the body of POST /admin/v1/enrol: an invitation is taken up.
type Enrol struct {
	Name     string    `json:"name"`
	Halves   [2]string `json:"halves"` // of the invitation's code, in any order
	Password []byte    `json:"password"`
}

// Enrolled has the secret of a person's codes, which is shown this once.
type Enrolled struct {
	URI string `json:"uri"` // otpauth://totp/…
}

// StepUp is the body of POST /admin/v1/session/step-up.
type StepUp struct {
	Code string `json:"code"`
}

// NewPassword is the body of POST /admin/v1/session/password.
type NewPassword struct {
	Old  []byte `json:"old"`
	New  []byte `json:"new"`
	Code string `json:"code"`
}

// NewPerson is the body of POST /admin/v1/people. Half is the SHA-256 of the half of the
// invitation's code that the asker has drawn.
type NewPerson struct {
	Name string `json:"name"`
	Role string `json:"role"` // admin, officer or auditor
	Half []byte `json:"half"`
}

// ResetPerson is the body of POST /admin/v1/people/{person}/reset.
type ResetPerson struct {
	Half []byte `json:"half"`
}

// Invitation answers both of them. Half is the other half of the code, and shown this once.
type Invitation struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Half    string    `json:"half"`
	Expires time.Time `json:"expires"`
}

// Person is somebody who manages the service.
type Person struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	State   string    `json:"state"` // invited, active or disabled
	Created time.Time `json:"created"`
	Issuer  string    `json:"issuer,omitempty"`  // of the provider that the person is bound to
	Subject string    `json:"subject,omitempty"` // there
}

// BeginOIDC is the body of POST /admin/v1/login/oidc/begin. RedirectURI is
// http://127.0.0.1:PORT/callback, where the person's program listens (RFC 8252, section 7.3).
type BeginOIDC struct {
	RedirectURI string `json:"redirect_uri"`
}

// BegunOIDC answers it. URL is for the person's browser; the state comes back with the code.
type BegunOIDC struct {
	URL   string `json:"url"`
	State string `json:"state"`
}

// FinishOIDC is the body of POST /admin/v1/login/oidc/finish; a Session answers.
type FinishOIDC struct {
	State string `json:"state"`
	Code  string `json:"code"`
}

// BindOIDC is the body of POST /admin/v1/people/{person}/bind-oidc. A subject of "" unbinds.
type BindOIDC struct {
	Subject string `json:"subject"`
}

// Approval is what somebody has asked for, and how it stands. It answers a call that needs
// another person's approval, with status 202.
type Approval struct {
	ID      string    `json:"id"`
	What    string    `json:"what"`
	Method  string    `json:"method"`
	Path    string    `json:"path"`
	Body    string    `json:"body,omitempty"` // exactly as it will be done
	Digest  string    `json:"digest"`         // of all that
	By      string    `json:"by"`
	State   string    `json:"state"` // waiting, granted, done, failed, refused or expired
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Decided time.Time `json:"decided,omitzero"`
	Decider string    `json:"decider,omitempty"`
	Why     string    `json:"why,omitempty"`     // of a refusal
	Outcome string    `json:"outcome,omitempty"` // ok, or the code of the failure
	Result  any       `json:"result,omitempty"`  // the answer, told to who has granted it
}

// Grant is the body of POST /admin/v1/approvals/{id}/grant: the digest of what was seen.
type Grant struct {
	Digest string `json:"digest"`
}

// Refusal is the body of POST /admin/v1/approvals/{id}/refuse.
type Refusal struct {
	Why string `json:"why,omitempty"`
}
