package keystore

import (
	"time"

	"github.com/provisiond/provisiond/esp/chip"
)

// SchemaVersion is the schema of the records that this build writes.
const SchemaVersion = 1

// Record is all that is kept for one key of one unit: enough to encrypt for
// the unit years later without the station that made it.
type Record struct {
	Schema           int
	Unit             chip.MAC
	Simulated        bool // the unit has a locally administered MAC
	Chip             string
	ChipRevision     chip.Revision
	Scheme           chip.Scheme
	Key              Key
	Fingerprint      Fingerprint
	FlashCryptConfig uint8  // ESP32 only, 0 elsewhere
	PartitionTable   []byte // as flashed, in plaintext
	FlashSize        uint32 // bytes
	Recipe           string
	RecipeRevision   int
	RecipeHash       string // SHA-256, 64 lower-case hex digits
	Job              string
	Station          string
	Lot              string
	Created          time.Time // UTC
}
