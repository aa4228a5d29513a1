package hsm

import (
	"fmt"

	"github.com/go-json-experiment/json"
)

// ReportDir is where reports of ceremonies are, in the data directory.
const ReportDir = "ceremonies"

// Name is the name of a report's files, without their ending.
func (r Report) Name() string {
	return fmt.Sprintf("%s-%s-%.8s", r.Ended.Format("20060102T150405Z"), r.Kind, r.Ceremony)
}

// ReportContext is the context of reports' signatures.
const ReportContext = "report"

// Message is what a report's signature is over: the report as JSON, without the
// signature.
func (r Report) Message() ([]byte, error) {
	r.Signature = nil
	return json.Marshal(r, json.Deterministic(true))
}

// Check checks the report's signature, and that it is by the machine of that
// fingerprint, if one is given.
func (r Report) Check(fingerprint string) error {
	message, err := r.Message()
	if err != nil {
		return err
	}
	return Signature{PublicKey: r.PublicKey, Fingerprint: r.Fingerprint, Signature: r.Signature}.Check(ReportContext, message, fingerprint)
}
