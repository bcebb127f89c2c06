package provision

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/layout"
)

// Inspection is what a chip shows of itself.
type Inspection struct {
	Chip            string                `json:"chip"`
	Unit            string                `json:"unit,omitempty"` // base MAC
	Simulated       bool                  `json:"simulated"`
	Revision        string                `json:"revision,omitempty"`
	FlashID         string                `json:"flash_id,omitempty"`
	FlashSize       uint32                `json:"flash_size,omitempty"`
	SecureDownload  bool                  `json:"secure_download_mode"`
	SecurityFlags   string                `json:"security_flags,omitempty"`
	SecurityRaw     string                `json:"security_info,omitempty"`    // the reply of GET_SECURITY_INFO
	FlashEncryption *bool                 `json:"flash_encryption,omitempty"` // nil: not known
	KeyBlocks       []efuse.KeyBlockState `json:"key_blocks,omitempty"`
	EFuse           *efuse.Snapshot       `json:"efuse,omitempty"`
}

// Inspect reads what a chip is, and changes nothing but the loader's state.
func Inspect(ctx context.Context, line Line, trace func(rom.TraceEvent)) (*Inspection, error) {
	u := &unit{Engine: &Engine{Trace: trace}, line: line, res: &Result{}}
	m, err := u.connect(ctx)
	if err != nil {
		return nil, onlyLooked(ctx, connectFailure(err))
	}
	u.model = m
	in := &Inspection{Chip: m.Name, SecureDownload: u.client.SecureDownload()}
	if m.ROM.SecurityInfo {
		info, err := u.client.SecurityInfo(ctx)
		if err != nil {
			return in, onlyLooked(ctx, err)
		}
		on := info.FlashEncryption()
		in.SecurityFlags, in.SecurityRaw, in.FlashEncryption = info.Flags.String(), hex.EncodeToString(info.Bytes()), &on
	}
	if in.SecureDownload {
		return in, nil // neither registers nor flash can be read
	}
	if err := u.look(ctx); err != nil {
		return in, onlyLooked(ctx, err)
	}
	in.Unit, in.Simulated, in.Revision = u.mac.String(), u.mac.LocallyAdministered(), u.rev.String()
	in.EFuse, in.KeyBlocks = u.now, u.now.KeyBlocks()
	if v, err := u.now.Field(m.EFuse.FlashCryptCount); err == nil {
		on := oddBits(v)
		in.FlashEncryption = &on
	}
	if err := u.client.AttachFlash(ctx); err != nil {
		return in, onlyLooked(ctx, err)
	}
	id, err := u.client.FlashID(ctx)
	if err != nil {
		return in, onlyLooked(ctx, err)
	}
	in.FlashID, in.FlashSize = id.String(), id.Size
	return in, nil
}

// onlyLooked is asFailure for what begins nothing: there is no job to go on with.
func onlyLooked(ctx context.Context, err error) error {
	f := *asFailure(ctx, err)
	switch {
	case f.Cause == CauseCancelled:
		f.NextStep = "run it again"
	default:
		f.NextStep = strings.ReplaceAll(f.NextStep, "start the same job again", "run it again")
	}
	return &f
}

func oddBits(v uint64) bool {
	odd := false
	for ; v != 0; v &= v - 1 {
		odd = !odd
	}
	return odd
}

// PlanReport is what would be done to the unit on a line.
type PlanReport struct {
	Unit           string                 `json:"unit"`
	Chip           string                 `json:"chip"`
	Revision       string                 `json:"revision"`
	Recipe         string                 `json:"recipe"`
	RecipeRevision int                    `json:"recipe_revision"`
	Profile        string                 `json:"profile"`
	ClosesForever  bool                   `json:"closes_forever"`
	PlanSHA256     Hash                   `json:"plan_sha256"`
	TableSHA256    Hash                   `json:"table_sha256"`
	TableSource    string                 `json:"table_source"`
	Regions        []layout.RegionSummary `json:"regions"`
	Erase          []layout.Range         `json:"erase"`
	Untouched      []layout.Range         `json:"untouched"`
	Warnings       []string               `json:"warnings"`
	Advisories     []chip.Advisory        `json:"advisories"` // what is known of this silicon
	Security       Security               `json:"security"`
	Stages         []string               `json:"stages"`
	// BootCheck is the text for which the unit is booted, after stage BootAfter; both
	// are empty where it is not.
	BootCheck string `json:"boot_check,omitempty"`
	BootAfter string `json:"boot_after,omitempty"`
	// Block0 are BLOCK0's words when all is burned, eight hex digits each.
	Block0 []string    `json:"block0"`
	Bits   []efuse.Bit `json:"bits"`
}

// MakePlan computes what Run would do to a unit that nobody knows yet. It
// writes no flash and burns nothing.
func MakePlan(ctx context.Context, line Line, job *Job, trace func(rom.TraceEvent)) (*PlanReport, error) {
	u := &unit{
		Engine: &Engine{Trace: trace, Journal: noJournal{}, Store: nil}, job: job, line: line,
		model: job.Recipe.Model(), res: &Result{}, past: history{intents: map[string]bool{}},
	}
	if err := u.connectFirst(ctx); err != nil {
		return nil, onlyLooked(ctx, err)
	}
	if err := u.inspect(ctx); err != nil {
		return nil, onlyLooked(ctx, err)
	}
	if err := u.makePlan(); err != nil {
		return nil, onlyLooked(ctx, err)
	}
	t := u.now.Table()
	p := &PlanReport{
		Unit: u.mac.String(), Chip: u.model.Name, Revision: u.rev.String(),
		Recipe: job.Recipe.Name, RecipeRevision: job.Recipe.Revision, Profile: string(job.Recipe.Profile),
		ClosesForever: job.Recipe.ClosesForever(), PlanSHA256: u.plan.Hash(),
		TableSHA256: t.Hash(), TableSource: t.Source().String(),
		Regions: job.Layout.Summary(), Erase: job.Layout.Erase, Untouched: job.Layout.Untouched,
		Warnings: append([]string{}, job.Layout.Warnings...), Bits: u.plan.Bits(),
	}
	p.Security = job.security()
	p.Warnings = append(p.Warnings, job.warnings(u.model)...)
	if b := job.Recipe.BootCheck; b.Enabled() {
		p.BootCheck, p.BootAfter = b.Expect, stageEnable
	}
	p.Block0 = wordsAfter(u.now, p.Bits)
	p.Advisories = append([]chip.Advisory{}, u.model.Advisories(u.rev)...)
	for _, s := range u.plan.Stages() {
		p.Stages = append(p.Stages, s.Name)
	}
	return p, nil
}

// wordsAfter gives the words of BLOCK0 when bits are burned.
func wordsAfter(now *efuse.Snapshot, list []efuse.Bit) []string {
	first := now.Words()[0]
	out := make([]string, len(first.Words))
	for i, text := range first.Words {
		w, _ := strconv.ParseUint(text, 16, 32) // hex digits, as Words writes them
		for _, b := range list {
			if b.Block == first.Block && b.Word == i && b.Bit >= 0 {
				w |= 1 << b.Bit
			}
		}
		out[i] = fmt.Sprintf("%08x", w)
	}
	return out
}

// advisoryIDs names what is known of a chip's silicon when a unit is planned: the
// journal keeps the ids, and esp/chip says what each means.
func advisoryIDs(m chip.Model, rev chip.Revision) []string {
	var ids []string
	for _, a := range m.Advisories(rev) {
		ids = append(ids, a.ID)
	}
	return ids
}

// noJournal is for plans: they do nothing that would have to be recorded.
type noJournal struct{}

func (noJournal) Append(_ context.Context, e journal.Entry) (journal.Entry, error) { return e, nil }
func (noJournal) Unit(chip.MAC) ([]journal.Entry, error)                           { return nil, nil }
