package station

import (
	"context"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/journal"
)

// maxScan is more than any of the codes has.
const maxScan = 200

// Scan takes what a scanner read. A code is a prefix, a colon and a value:
//
//	SLOT:3             the codes that follow are for slot 3
//	SN:AB0001          the serial number on the label of the board in it: starts it
//	MAC:24:0A:C4:…     shows what the station knows of that unit
//	LOT:L7:sensor:500  opens lot L7 of recipe sensor with 500 units
//	CMD:START, CMD:ABORT, CMD:CLEAR   to the slot
//	CMD:SCRAP          writes down that the unit in the slot is thrown away
//	CMD:ENDLOT         closes the slot's lot
//
// Without a SLOT before it, a code is for the only slot that it can be for.
func (s *Station) Scan(ctx context.Context, by Person, code string) (ScanResult, error) {
	code = strings.TrimSpace(code)
	if code == "" || len(code) > maxScan || !utf8.ValidString(code) {
		return ScanResult{}, invalid("scan it again", "the scanner gave nothing that can be read")
	}
	prefix, value, ok := strings.Cut(code, ":")
	if !ok {
		return ScanResult{}, invalid("codes begin with SLOT:, SN:, MAC:, LOT: or CMD:", "%q has no prefix", code)
	}
	switch strings.ToUpper(prefix) {
	case "SLOT":
		return s.scanSlot(by, value)
	case "SN":
		return s.scanSerial(ctx, by, value)
	case "MAC":
		return s.scanUnit(ctx, value)
	case "LOT":
		return s.scanLot(ctx, by, value)
	case "CMD":
		return s.scanCommand(ctx, by, strings.ToUpper(value))
	}
	return ScanResult{}, invalid("codes begin with SLOT:, SN:, MAC:, LOT: or CMD:", "nobody knows what %q means", prefix)
}

func (s *Station) scanSlot(by Person, name string) (ScanResult, error) {
	if s.slot(name) == nil {
		return ScanResult{}, notFound("check the code on the fixture", "there is no slot %q", name)
	}
	s.mu.Lock()
	s.selected[by.Name] = name
	s.mu.Unlock()
	return ScanResult{Text: "slot " + name, Slot: name}, nil
}

// target is the slot that a code is for: the one that was scanned before, or the
// only one that fits.
func (s *Station) target(by Person, fits func(SlotView) bool) (string, error) {
	s.mu.Lock()
	name := s.selected[by.Name]
	delete(s.selected, by.Name) // for one code
	s.mu.Unlock()
	if name != "" && s.slot(name) != nil {
		return name, nil
	}
	var found []string
	for _, sl := range s.slots() {
		if fits(sl.current()) {
			found = append(found, sl.spec.Name)
		}
	}
	switch len(found) {
	case 0:
		return "", conflict("scan the code of a slot first", "no slot is waiting for this")
	case 1:
		return found[0], nil
	}
	return "", conflict("scan the code of the slot first", "slots %s could be meant", strings.Join(found, ", "))
}

func canStart(v SlotView) bool {
	switch v.State {
	case SlotReady, SlotWaiting, SlotAborted, SlotError, SlotRefused:
		return true
	case SlotMissing, SlotBusy, SlotPass, SlotFail, SlotQuarantined, SlotDone, SlotBlocked:
	}
	return false
}

func (s *Station) scanSerial(ctx context.Context, by Person, serial string) (ScanResult, error) {
	if !serialName.MatchString(serial) {
		return ScanResult{}, invalid("scan the label again", "%q is no serial number", serial)
	}
	name, err := s.target(by, canStart)
	if err != nil {
		return ScanResult{}, err
	}
	if err := s.StartUnit(ctx, by, name, serial); err != nil {
		return ScanResult{}, err
	}
	return ScanResult{Text: serial + " in slot " + name, Slot: name}, nil
}

func (s *Station) scanUnit(ctx context.Context, text string) (ScanResult, error) {
	mac, err := chip.ParseMAC(text)
	if err != nil {
		return ScanResult{}, invalid("scan the label again", "%q is no MAC address", text)
	}
	runs, err := s.History(ctx, HistoryQuery{Unit: mac.String(), Limit: 1})
	if err != nil {
		return ScanResult{}, err
	}
	if len(runs) == 0 {
		return ScanResult{Text: "unit " + mac.String() + " was never here"}, nil
	}
	return ScanResult{Text: "unit " + mac.String() + ": " + string(runs[0].Verdict), Slot: runs[0].Slot}, nil
}

func (s *Station) scanLot(ctx context.Context, by Person, value string) (ScanResult, error) {
	part := strings.Split(value, ":")
	if len(part) != 3 {
		return ScanResult{}, invalid("write LOT:name:recipe:quantity", "the code does not say which recipe and how many")
	}
	n, err := strconv.Atoi(part[2])
	if err != nil {
		return ScanResult{}, invalid("write LOT:name:recipe:quantity", "%q is no quantity", part[2])
	}
	// A code cannot agree that units close for ever: that wants a person at the page.
	l, err := s.OpenLot(ctx, by, LotRequest{ID: part[0], Recipe: part[1], Quantity: n})
	if err != nil {
		return ScanResult{}, err
	}
	return ScanResult{Text: "lot " + l.ID + " is open: " + strconv.Itoa(l.Quantity) + " × " + l.Recipe}, nil
}

func (s *Station) scanCommand(ctx context.Context, by Person, command string) (ScanResult, error) {
	fits := canStart
	switch command {
	case "START", "ENDLOT":
	case "ABORT":
		fits = func(v SlotView) bool { return v.State == SlotBusy }
	case "CLEAR":
		fits = func(v SlotView) bool { return v.State == SlotBlocked }
	case "SCRAP":
		fits = func(v SlotView) bool {
			return v.Unit != "" && v.State != SlotBusy && v.State != SlotPass && v.State != SlotDone
		}
	default:
		return ScanResult{}, invalid("the commands are START, ABORT, CLEAR, SCRAP and ENDLOT", "nobody knows command %q", command)
	}
	if command == "ENDLOT" {
		return s.scanEndLot(ctx, by)
	}
	name, err := s.target(by, fits)
	if err != nil {
		return ScanResult{}, err
	}
	text := ""
	switch command {
	case "START":
		text, err = "slot "+name+" starts", s.StartUnit(ctx, by, name, "")
	case "ABORT":
		text, err = "slot "+name+" stops", s.AbortUnit(ctx, by, name)
	case "CLEAR":
		text, err = "slot "+name+" is in use again", s.ClearSlot(ctx, by, name, "")
	default:
		text, err = s.scrap(ctx, by, name)
	}
	if err != nil {
		return ScanResult{}, err
	}
	return ScanResult{Text: text, Slot: name}, nil
}

// scrap writes down that a unit is thrown away. It changes nothing that the
// journal says about it.
func (s *Station) scrap(ctx context.Context, by Person, name string) (string, error) {
	sl := s.slot(name)
	if sl == nil { // a reload took it away this moment
		return "", notFound("look at the page", "there is no slot %q any more", name)
	}
	v := sl.current()
	mac, err := chip.ParseMAC(v.Unit)
	if err != nil {
		return "", conflict("write its label down", "the unit in slot %s never told its MAC", name)
	}
	if v.State == SlotBusy {
		return "", conflict("abort it first", "slot %s has a unit in work", name)
	}
	if _, err := s.appendFor(ctx, mac, journal.KindOperator, name, "scrap", map[string]any{"operator": by.Name, "reason": v.Reason}); err != nil {
		return "", err
	}
	return "unit " + v.Unit + " is scrapped", nil
}

func (s *Station) scanEndLot(ctx context.Context, by Person) (ScanResult, error) {
	s.mu.Lock()
	name := s.selected[by.Name]
	delete(s.selected, by.Name)
	s.mu.Unlock()
	open := s.openLots()
	id := ""
	switch {
	case name != "":
		id = s.lotNamed(name)
	case len(open) == 1:
		id = open[0].entry.Lot
	}
	if id == "" {
		return ScanResult{}, conflict("scan the code of one of its slots first", "it is not clear which lot is meant")
	}
	if err := s.CloseLot(ctx, by, id); err != nil {
		return ScanResult{}, err
	}
	return ScanResult{Text: "lot " + id + " is closed"}, nil
}
