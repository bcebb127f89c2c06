package provision

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
)

// history is what the journal tells about a unit.
type history struct {
	finished    bool // a verdict PASS stands
	quarantined bool
	reason      string // of the last verdict
	otherJob    string // another job that began something irreversible
	intents     map[string]bool
	keyBurned   bool                 // this job's key was read back, or is about to be recognised
	fp          keystore.Fingerprint // of the key whose custody was confirmed last
	ref         string               // and where that was
	burnFP      keystore.Fingerprint // of the key whose burn was intended last
	burned      []keySlot            // where it and its companions were to go
	gaveUp      bool                 // and the keystore says that it was never burned
	reworking   bool                 // a rework was begun and is not done
	images      []flashed
	facts       *unitFacts // what the unit's own data say of it
	unasked     string     // what of the keystore could not be asked about the unit, and why
	closing     *Closing   // evidence that the last fuse works
	proved      bool       // and that the closed unit boots
}

// flashed is a region as an earlier run of the job verified it.
type flashed struct {
	Name             string `json:"name"`
	Offset           uint32 `json:"offset"`
	Length           int    `json:"length"`
	Encrypted        bool   `json:"encrypted"`
	MD5              string `json:"md5"`
	PlaintextSHA256  string `json:"plaintext_sha256"`
	CiphertextSHA256 string `json:"ciphertext_sha256"`
}

// readHistory goes through a unit's entries in their order.
func readHistory(entries []journal.Entry, job string) (history, error) {
	h := history{intents: map[string]bool{}}
	for _, e := range entries {
		if e.Kind == journal.KindVerdict {
			var v struct {
				Verdict Verdict       `json:"verdict"`
				Reason  string        `json:"reason"`
				Rework  *ReworkResult `json:"rework"`
			}
			if err := json.Unmarshal(e.Payload, &v); err != nil {
				return h, fmt.Errorf("journal entry %d: %w", e.Index, err)
			}
			h.finished = h.finished || v.Verdict == Pass
			h.quarantined = h.quarantined || v.Verdict == Quarantined
			h.reason = v.Reason
			if v.Rework != nil && v.Rework.Done { // a person decided, and it was shown to work
				h.reworking, h.quarantined = false, false
			}
			continue
		}
		if e.Kind == journal.KindOperator {
			h.reworking = h.reworking || e.Step == StepRework
			continue
		}
		if e.Job != job {
			// What it wrote to the flash is erased, and the key that it stored is the
			// keystore's to tell of. What it burned stays.
			if isOneWay(e.Step) {
				h.otherJob = e.Job
			}
			continue
		}
		if e.Kind == journal.KindIntent {
			h.intents[e.Step] = true
			if err := h.intend(e); err != nil {
				return h, fmt.Errorf("journal entry %d: %w", e.Index, err)
			}
			continue
		}
		if err := h.observe(e); err != nil {
			return h, fmt.Errorf("journal entry %d: %w", e.Index, err)
		}
	}
	return h, nil
}

func (h *history) intend(e journal.Entry) error {
	switch e.Step {
	case stageKey:
		return h.intendKey(e)
	case stepFlash:
		var intent struct {
			Facts *unitFacts `json:"unit_data"`
		}
		if err := json.Unmarshal(e.Payload, &intent); err != nil {
			return err
		}
		h.facts = intent.Facts
	}
	return nil
}

func (h *history) intendKey(e journal.Entry) error {
	var intent struct {
		Fingerprint keystore.Fingerprint `json:"key_fingerprint"`
		Block       string               `json:"block"`
		Slots       []keySlot            `json:"slots"`
	}
	if err := json.Unmarshal(e.Payload, &intent); err != nil {
		return err
	}
	h.burnFP, h.burned = intent.Fingerprint, intent.Slots
	if len(h.burned) == 0 { // written when a unit had one key
		h.burned = []keySlot{{Block: intent.Block, Fingerprint: intent.Fingerprint}}
	}
	return nil
}

func (h *history) observe(e journal.Entry) error {
	var saw struct {
		Outcome     string    `json:"outcome"`
		Fingerprint string    `json:"key_fingerprint"`
		Ref         string    `json:"key_ref"`
		Regions     []flashed `json:"regions"`
		Closing     *Closing  `json:"closing"`
	}
	if err := json.Unmarshal(e.Payload, &saw); err != nil {
		return err
	}
	if saw.Outcome != "done" {
		return nil
	}
	switch e.Step {
	case stepVerify:
		h.images = saw.Regions
	case stepCustody:
		fp, err := keystore.ParseFingerprint(saw.Fingerprint)
		if err != nil {
			return err
		}
		h.fp, h.ref = fp, saw.Ref
	case stageClose:
		h.closing, h.proved = saw.Closing, false
	case stepProof:
		h.proved = h.closing != nil
	}
	return nil
}

// securityFields lists the BLOCK0 fields of a chip that a virgin chip has at 0.
func securityFields(s *efuse.Snapshot) []string {
	var names []string
	for _, f := range s.Table().Fields() {
		if f.Block == 0 && isSecurityField(f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// isSecurityField goes by the vendor's naming. WR_DIS and RD_DIS stand for all
// of their bits, whose single names carry a dot.
func isSecurityField(name string) bool {
	if strings.Contains(name, ".") || name == "JTAG_SEL_ENABLE" || name == "STRAP_JTAG_SEL" {
		return false
	}
	for _, part := range []string{
		"WR_DIS", "RD_DIS", "CRYPT", "UART_DOWNLOAD_DIS", "ABS_DONE", "JTAG", "DISABLE_DL_", "CONSOLE_DEBUG_DISABLE",
		"DIS_DOWNLOAD", "DIS_FORCE_DOWNLOAD", "DIS_DIRECT_BOOT", "DIS_USB", "SECURE", "SECURITY", "KEY_PURPOSE", "KEY_STATUS",
		"DIS_BOOT_REMAP", "DIS_LEGACY_SPI_BOOT", "SPI_DOWNLOAD_MSPI", "ECDSA_CURVE_MODE", "ANTI_ROLLBACK",
		"XTS_DPA_PSEUDO", "XTS_KEY_LENGTH", "KEY_MANAGER", // another flash key, or the same one read otherwise
		"DIS_ICACHE", "DIS_DCACHE", "DIS_CACHE", // such a chip cannot run from flash
		"UART_PRINT_C", // such a ROM may print neither banner nor refusal, which are evidence here
	} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// foreignFuses names every security field whose bits are not explained: not by
// the vendor's factory, and not by the stages whose intent this job has in the
// journal.
func foreignFuses(m chip.Model, s *efuse.Snapshot, planned []efuse.Stage, intents map[string]bool) ([]string, error) {
	allowed := map[string]uint64{}
	for _, name := range m.FactorySet {
		allowed[name] = ^uint64(0)
	}
	for _, st := range planned {
		if !intents[st.Name] {
			continue
		}
		for _, a := range st.Set {
			allowed[a.Field] |= uint64(a.Value)
		}
		for _, k := range st.Keys {
			p, ok := s.Table().Purpose(k.Purpose)
			if !ok {
				return nil, fmt.Errorf("the %s has no key purpose %s", m.Title, k.Purpose)
			}
			for _, a := range purposeBits(s.Table(), k.Block, p) {
				allowed[a.Field] |= uint64(a.Value)
			}
		}
		wr, rd, err := protectionMasks(s.Table(), st)
		if err != nil {
			return nil, err
		}
		allowed["WR_DIS"] |= wr
		allowed["RD_DIS"] |= rd
	}
	var foreign []string
	for _, name := range securityFields(s) {
		v, err := s.Field(name)
		if errors.Is(err, efuse.ErrProtected) {
			foreign = append(foreign, name+" is read-protected") // whatever it is
			continue
		}
		if err != nil {
			return nil, err
		}
		if extra := v &^ allowed[name]; extra != 0 {
			foreign = append(foreign, fmt.Sprintf("%s = 0x%x", name, v))
		}
	}
	return foreign, nil
}

// protectionMasks gives the bits of WR_DIS and RD_DIS that a stage sets.
func protectionMasks(t *table.Table, st efuse.Stage) (wr, rd uint64, err error) {
	wrDis, _ := t.Field("WR_DIS")
	rdDis, _ := t.Field("RD_DIS")
	for _, name := range st.WriteProtect {
		bit := table.None
		if f, ok := t.Field("WR_DIS." + name); ok {
			bit = f.Bits()[0] - wrDis.Bits()[0]
		}
		if bit == table.None {
			return 0, 0, fmt.Errorf("%s has no bit in WR_DIS of the %s", name, t.Chip())
		}
		wr |= 1 << bit
	}
	for _, name := range st.ReadProtect {
		f, ok := t.Field("RD_DIS." + name)
		if !ok {
			return 0, 0, fmt.Errorf("%s has no bit in RD_DIS of the %s", name, t.Chip())
		}
		for _, bit := range f.Bits() {
			rd |= 1 << (bit - rdDis.Bits()[0])
		}
	}
	return wr, rd, nil
}
