package provision

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
)

// Hash is a SHA-256 that JSON shows in hex; the zero value is an empty string.
type Hash [32]byte

// String is the hash in hex.
func (h Hash) String() string {
	if h == (Hash{}) {
		return ""
	}
	return hex.EncodeToString(h[:])
}

// MarshalText makes the hash a hex string in JSON.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*h = Hash{}
		return nil
	}
	if len(b) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("%d characters are no SHA-256 in hex", len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Result is what a run on one unit came to: one JSON object per unit on the
// command line and in the API.
type Result struct {
	Unit           string             `json:"unit"` // base MAC, empty if it was never read
	Serial         string             `json:"serial,omitempty"`
	Simulated      bool               `json:"simulated"`
	Chip           string             `json:"chip"`
	Revision       string             `json:"revision"`
	Verdict        Verdict            `json:"verdict"`
	Cause          Cause              `json:"cause,omitempty"` // why it is not PASS
	Reason         string             `json:"reason"`
	NextStep       string             `json:"next_step"`
	FinishedBefore bool               `json:"finished_before,omitempty"` // refused because an earlier run passed
	KeystoreAway   bool               `json:"keystore_away,omitempty"`   // it was not there: waiting helps
	LoaderClosed   bool               `json:"loader_closed,omitempty"`   // refused because its loader is closed already
	Job            string             `json:"job"`
	Recipe         string             `json:"recipe"`
	RecipeRevision int                `json:"recipe_revision"`
	Profile        string             `json:"profile"`
	KeyRef         string             `json:"key_ref"`
	KeyFingerprint string             `json:"key_fingerprint"`
	PlanSHA256     Hash               `json:"plan_sha256"`
	EFuseBefore    []efuse.BlockWords `json:"efuse_before"`
	EFuseAfter     []efuse.BlockWords `json:"efuse_after"` // the last snapshot that could be read
	Closing        *Closing           `json:"closing"`     // null while the loader stays open
	Images         []ImageResult      `json:"images"`
	Rework         *ReworkResult      `json:"rework,omitempty"`
	Steps          []StepResult       `json:"steps"`
	BytesWritten   int64              `json:"bytes_written"`
	Baud           int                `json:"baud,omitempty"` // that the line carried while the flash was written
	ElapsedMS      int64              `json:"elapsed_ms"`
	Warnings       []string           `json:"warnings,omitempty"` // what does not change the verdict and somebody should know
}

// Closing is the positive evidence that the last fuse works.
type Closing struct {
	Fuse string `json:"fuse"`
	// Evidence is security-flags, rom-refusal or fuse-read-back.
	Evidence string `json:"evidence"`
	Raw      string `json:"raw"` // what the chip sent, in hex
}

// The kinds of closing evidence.
const (
	EvidenceFlags    = "security-flags" // GET_SECURITY_INFO in Secure Download Mode
	EvidenceRefusal  = "rom-refusal"    // the ROM's text instead of a loader
	EvidenceReadBack = "fuse-read-back" // ESP32: the fuse itself, before the reset that makes it work
)

// ImageResult names one region of the flash.
type ImageResult struct {
	Name             string `json:"name"`
	Offset           uint32 `json:"offset"`
	Length           int    `json:"length"`
	Encrypted        bool   `json:"encrypted"`
	PlaintextSHA256  Hash   `json:"plaintext_sha256"`
	CiphertextSHA256 Hash   `json:"ciphertext_sha256"`
}

// StepResult is how long a step took and how it ended.
type StepResult struct {
	Name    string `json:"name"`
	MS      int64  `json:"ms"`
	Outcome string `json:"outcome"` // done, failed, or unknown: nobody knows what it did to the fuses
}

// ExitCode is the exit code of a command that ran this one unit.
func (r *Result) ExitCode() int {
	if r.Verdict == Pass {
		return ExitDone
	}
	return (&Failure{Cause: r.Cause}).ExitCode()
}

func (r *Result) take(f *Failure) {
	r.Verdict, r.Cause, r.NextStep = f.Verdict(), f.Cause, f.NextStep
	r.Reason, r.FinishedBefore, r.LoaderClosed, r.KeystoreAway = f.Reason, f.Finished, f.Closed, f.Away
	if f.Err != nil {
		r.Reason += ": " + f.Err.Error()
	}
}

// Event is progress on a unit, for a screen. Losing one loses nothing.
type Event struct {
	Unit        chip.MAC
	Step        string
	Index       int   // of the step, from 1
	Count       int   // of steps
	Done, Total int64 // inside the step, in bytes; Total 0: unknown
	Text        string
	Elapsed     time.Duration // since the run began
}
