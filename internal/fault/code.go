package fault

import "net/http"

// Code names a kind of failure. Codes are part of the public contract: they
// never change meaning. A Code is itself an error, so that it can be the target
// of errors.Is and the plainest possible fault.
type Code string

// Error returns the code's title.
func (c Code) Error() string { return c.Title() }

// Codes of the data plane.
const (
	BadRequest          Code = "bad_request"
	TooLarge            Code = "too_large"
	Unauthorized        Code = "unauthorized"
	Forbidden           Code = "forbidden"
	IPNotAllowed        Code = "ip_not_allowed"
	KeyNotFound         Code = "key_not_found"
	KeyDisabled         Code = "key_disabled"
	KeyDestroyed        Code = "key_destroyed"
	KeyInUse            Code = "key_in_use"
	AlgorithmNotAllowed Code = "algorithm_not_allowed"
	ContextRequired     Code = "context_required"
	DecryptFailed       Code = "decrypt_failed"
	SignatureInvalid    Code = "signature_invalid"
	Replay              Code = "replay"
	WrongRegion         Code = "wrong_region"
	Sealed              Code = "sealed"
	Unavailable         Code = "unavailable"
	NotFound            Code = "not_found"
	MethodNotAllowed    Code = "method_not_allowed"
	UnsupportedMedia    Code = "unsupported_media_type"
	Conflict            Code = "conflict"
	Internal            Code = "internal"
	AuditBlocked        Code = "audit_blocked"
	RateLimited         Code = "rate_limited"
	LockedOut           Code = "locked_out"
	BudgetExceeded      Code = "budget_exceeded"
)

// Codes of the admin API.
const (
	StepUpRequired   Code = "step_up_required"
	ApprovalRequired Code = "approval_required"
)

// Codes of the machine's console: cards, PINs, ceremonies.
const (
	MachineBlank       Code = "machine_blank"
	MachineInitialised Code = "machine_initialised"
	MachineOpen        Code = "machine_open"
	NoCeremony         Code = "no_ceremony"
	NoWindow           Code = "no_submission_window"
	FingerprintWrong   Code = "fingerprint_mismatch"
	JoinExpired        Code = "join_expired"
	CardAbsent         Code = "card_absent"
	CardEmpty          Code = "card_empty"
	CardInUse          Code = "card_in_use"
	CardDamaged        Code = "card_damaged"
	CardMismatch       Code = "card_commitment_mismatch"
	CardOtherMachine   Code = "card_other_machine"
	CardOlder          Code = "card_older_generation"
	CardNewer          Code = "card_newer_generation"
	CardSuperseded     Code = "card_superseded_split"
	CardRepeated       Code = "card_already_given"
	CardFull           Code = "card_refused_object"
	CardsMissing       Code = "cards_missing"
	PINIncorrect       Code = "pin_incorrect"
	PINLocked          Code = "pin_locked"
	PINFinalTry        Code = "pin_final_try"
	PINTriesSpent      Code = "pin_tries_spent"
	RootMismatch       Code = "root_mismatch"
	RootGeneration     Code = "root_generation"
	CardLost           Code = "card_declared_lost"
	ChipFault          Code = "chip_fault"
	ModuleFault        Code = "pkcs11_module_fault"
	SelfTestFailed     Code = "self_test_failed"
)

// Codes of the key store and of local files.
const (
	StoreDamaged  Code = "store_damaged"
	StoreLocked   Code = "store_locked"
	RecordDamaged Code = "record_damaged"
	AuditAltered  Code = "audit_altered"

	BackupDamaged  Code = "backup_damaged"
	BackupForeign  Code = "backup_foreign"
	BackupRollback Code = "backup_rollback"

	Findings  Code = "findings"
	FileMode  Code = "file_mode"
	BadConfig Code = "bad_config"
	Usage     Code = "usage"
)

// Exit codes of the trikey command.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitUnavailable = 3
	ExitRefused     = 4
	ExitNotFound    = 5
	ExitUnverified  = 6
)

type kind struct {
	title     string
	status    int
	exit      int
	retryable bool
}

var kinds = map[Code]kind{
	BadRequest:          {"The request is malformed", http.StatusBadRequest, ExitUsage, false},
	TooLarge:            {"The request is too large", http.StatusRequestEntityTooLarge, ExitUsage, false},
	Unauthorized:        {"The caller is not authenticated", http.StatusUnauthorized, ExitRefused, false},
	Forbidden:           {"The caller has no grant for this", http.StatusForbidden, ExitRefused, false},
	IPNotAllowed:        {"The caller's address is not on the whitelist", http.StatusForbidden, ExitRefused, false},
	KeyNotFound:         {"There is no such key", http.StatusNotFound, ExitNotFound, false},
	KeyDisabled:         {"The key is disabled", http.StatusConflict, ExitRefused, false},
	KeyDestroyed:        {"The key version is destroyed", http.StatusConflict, ExitNotFound, false},
	KeyInUse:            {"The key still has ciphertexts", http.StatusConflict, ExitRefused, false},
	AlgorithmNotAllowed: {"The key does not serve this algorithm", http.StatusUnprocessableEntity, ExitRefused, false},
	ContextRequired:     {"The key asks for more context", http.StatusUnprocessableEntity, ExitRefused, false},
	DecryptFailed:       {"The ciphertext does not open", http.StatusUnprocessableEntity, ExitUnverified, false},
	SignatureInvalid:    {"The signature is not valid", http.StatusUnauthorized, ExitUnverified, false},
	Replay:              {"The request was made before", http.StatusUnauthorized, ExitRefused, false},
	WrongRegion:         {"The key belongs to another region", http.StatusForbidden, ExitRefused, false},
	Sealed:              {"The machine is sealed", http.StatusServiceUnavailable, ExitUnavailable, true},
	Unavailable:         {"The service is not available", http.StatusServiceUnavailable, ExitUnavailable, true},
	NotFound:            {"There is no such resource", http.StatusNotFound, ExitNotFound, false},
	MethodNotAllowed:    {"The resource does not take this method", http.StatusMethodNotAllowed, ExitUsage, false},
	UnsupportedMedia:    {"The content type is not supported", http.StatusUnsupportedMediaType, ExitUsage, false},
	Conflict:            {"It conflicts with what exists", http.StatusConflict, ExitFailed, false},
	AuditBlocked:        {"The audit log cannot be written", http.StatusServiceUnavailable, ExitUnavailable, true},
	RateLimited:         {"The caller asks for more than its rate", http.StatusTooManyRequests, ExitUnavailable, true},
	LockedOut:           {"Too many failed authentications", http.StatusTooManyRequests, ExitRefused, false},
	BudgetExceeded:      {"The app's decryption is suspended", http.StatusForbidden, ExitRefused, false},
	Internal:            {"The service failed", http.StatusInternalServerError, ExitFailed, false},

	StepUpRequired:   {"A code must be given for this", http.StatusForbidden, ExitRefused, false},
	ApprovalRequired: {"Another person must approve this", http.StatusForbidden, ExitRefused, false},

	MachineBlank:       {"The machine is blank", http.StatusConflict, ExitUnavailable, false},
	MachineInitialised: {"The machine is initialised already", http.StatusConflict, ExitFailed, false},
	MachineOpen:        {"The machine is open", http.StatusConflict, ExitFailed, false},
	NoCeremony:         {"No such ceremony is under way", http.StatusConflict, ExitFailed, false},
	NoWindow:           {"No such submission window is open", http.StatusConflict, ExitUnavailable, false},
	FingerprintWrong:   {"The fingerprint is not the machine's", http.StatusConflict, ExitUnverified, false},
	JoinExpired:        {"The request to join has expired", http.StatusConflict, ExitRefused, false},
	CardAbsent:         {"The card is not in a reader", http.StatusNotFound, ExitNotFound, false},
	CardEmpty:          {"The card holds no Trikey share", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardInUse:          {"The card holds a share already", http.StatusConflict, ExitRefused, false},
	CardDamaged:        {"The share on the card is damaged", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardMismatch:       {"The share on the card is not the one that was dealt", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardOtherMachine:   {"The card belongs to another machine", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardOlder:          {"The card is of an older root generation", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardNewer:          {"The card is newer than the machine's record", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardSuperseded:     {"The card is of a superseded split", http.StatusUnprocessableEntity, ExitUnverified, false},
	CardRepeated:       {"The card was given already", http.StatusConflict, ExitFailed, false},
	CardFull:           {"The card did not take the share", http.StatusUnprocessableEntity, ExitFailed, false},
	CardsMissing:       {"Not enough cards", http.StatusConflict, ExitUnavailable, false},
	PINIncorrect:       {"The PIN is not correct", http.StatusForbidden, ExitRefused, false},
	PINLocked:          {"The card's PIN is locked", http.StatusForbidden, ExitRefused, false},
	PINFinalTry:        {"The card has one PIN try left", http.StatusForbidden, ExitRefused, false},
	PINTriesSpent:      {"The card's PIN was wrong too often at this machine", http.StatusForbidden, ExitRefused, false},
	RootMismatch:       {"The rebuilt root key is not this machine's", http.StatusUnprocessableEntity, ExitUnverified, false},
	RootGeneration:     {"It is of another generation of the root key", http.StatusServiceUnavailable, ExitUnverified, true},
	CardLost:           {"The card was declared lost", http.StatusConflict, ExitRefused, false},
	ChipFault:          {"The machine's chip failed", http.StatusInternalServerError, ExitFailed, false},
	ModuleFault:        {"A PKCS#11 module failed", http.StatusInternalServerError, ExitFailed, false},
	SelfTestFailed:     {"The known-answer self-test failed", http.StatusInternalServerError, ExitUnverified, false},

	StoreDamaged:   {"The key store is damaged", http.StatusInternalServerError, ExitUnverified, false},
	StoreLocked:    {"The key store is in use by another process", http.StatusConflict, ExitUnavailable, false},
	RecordDamaged:  {"A record of the key store was altered", http.StatusInternalServerError, ExitUnverified, false},
	AuditAltered:   {"The audit log was altered", http.StatusInternalServerError, ExitUnverified, false},
	BackupDamaged:  {"The backup is damaged", http.StatusUnprocessableEntity, ExitUnverified, false},
	BackupForeign:  {"The backup is of another machine, or does not belong together", http.StatusUnprocessableEntity, ExitUnverified, false},
	BackupRollback: {"The destruction keys are older than the backup", http.StatusUnprocessableEntity, ExitUnverified, false},

	Findings:  {"There are findings", http.StatusInternalServerError, ExitUnverified, false},
	FileMode:  {"The file's mode is too open", http.StatusForbidden, ExitRefused, false},
	BadConfig: {"The configuration is wrong", http.StatusInternalServerError, ExitUsage, false},
	Usage:     {"The command line is wrong", http.StatusBadRequest, ExitUsage, false},
}

// Known reports whether the code is one of this package's.
func (c Code) Known() bool { _, ok := kinds[c]; return ok }

func (c Code) kind() kind {
	if k, ok := kinds[c]; ok {
		return k
	}
	return kinds[Internal]
}

// Title returns the code's short human title, the same for each occurrence.
func (c Code) Title() string { return c.kind().title }

// Status returns the HTTP status that carries the code.
func (c Code) Status() int { return c.kind().status }

// Exit returns the exit code of a command that ends with this code.
func (c Code) Exit() int { return c.kind().exit }

// Retryable reports whether the same call may succeed on another node, or later.
func (c Code) Retryable() bool { return c.kind().retryable }
