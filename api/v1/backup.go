package v1

import "time"

// Backup says what is in a backup, and who signed that.
type Backup struct {
	ID           string    `json:"id"`
	Created      time.Time `json:"created"`
	Release      string    `json:"release"`
	MachineID    string    `json:"machine_id"`
	RootID       string    `json:"root_id"`
	Generation   uint32    `json:"generation"` // of the root
	KCV          string    `json:"kcv"`        // of the root
	Region       string    `json:"region,omitempty"`
	Revision     int64     `json:"revision"` // of the key store, whose state it is
	Records      int       `json:"records"`
	Keys         int       `json:"keys"`
	Versions     int       `json:"versions"`
	Destructions uint64    `json:"destructions"` // counter of the destruction keys
	AuditEvents  int64     `json:"audit_events"`
	AuditHead    string    `json:"audit_head,omitempty"`
	Fingerprint  string    `json:"fingerprint"` // of the machine that signed it
	Opened       bool      `json:"opened"`      // every record of it was opened
}
