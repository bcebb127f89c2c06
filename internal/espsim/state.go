package espsim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// A stored chip is a line stateMagic, a line of JSON with the fuses, and the flash
// in the form of package nor. It holds key bytes: they are in the fuses.
const stateMagic = "espsim 1\n"

// StateFile is the name of a stored chip in its directory.
const StateFile = "chip.espsim"

// ErrState is wrapped by every error about a stored chip that does not parse or
// does not fit.
var ErrState = errors.New("not a stored chip that fits here")

// maxStateLine bounds the JSON line: eleven blocks need three kilobytes.
const maxStateLine = 64 << 10

type storedFuses struct {
	Chip     string   `json:"chip"`
	Revision uint16   `json:"revision"`
	Cells    []string `json:"cells"` // per block: words as the array holds them, copies and parity included
}

// Save writes fuses and flash.
func (c *Chip) Save(w io.Writer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := storedFuses{Chip: c.model.Name, Revision: uint16(c.revision)}
	for _, cells := range c.fuse.cells {
		s.Cells = append(s.Cells, formatWords(cells))
	}
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%s%s\n", stateMagic, line); err != nil {
		return err
	}
	_, err = c.flash.WriteTo(w)
	return err
}

// Load takes over fuses, flash and revision that Save wrote, and turns the power
// off and on if it is on. After an error the chip is what it was.
func (c *Chip) Load(r io.Reader) error {
	br := bufio.NewReader(r)
	magic := make([]byte, len(stateMagic))
	if _, err := io.ReadFull(br, magic); err != nil || string(magic) != stateMagic {
		return fmt.Errorf("%w: it does not start with %q", ErrState, stateMagic[:len(stateMagic)-1])
	}
	line, err := readLine(br, maxStateLine)
	if err != nil {
		return fmt.Errorf("%w: no line of fuses: %w", ErrState, err)
	}
	var s storedFuses
	if err := json.Unmarshal(line, &s); err != nil {
		return fmt.Errorf("%w: fuses: %w", ErrState, err)
	}
	if again, err := json.Marshal(s); err != nil || !bytes.Equal(again, line) {
		return fmt.Errorf("%w: the line of fuses is not as Save writes it", ErrState)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Chip != c.model.Name {
		return fmt.Errorf("%w: it is of an %s, this is an %s", ErrState, s.Chip, c.model.Name)
	}
	if len(s.Cells) != len(c.fuse.cells) {
		return fmt.Errorf("%w: %d eFuse blocks, want %d", ErrState, len(s.Cells), len(c.fuse.cells))
	}
	cells := make([][]uint32, len(s.Cells))
	for i, text := range s.Cells {
		if cells[i], err = parseWords(text, len(c.fuse.cells[i])); err != nil {
			return fmt.Errorf("%w: eFuse block %d: %w", ErrState, i, err)
		}
	}
	tab, err := table.ForRevision(c.model.Name, chip.Revision(s.Revision))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if _, err := c.flash.ReadFrom(br); err != nil { // then it is what it was
		return fmt.Errorf("%w: flash: %w", ErrState, err)
	}
	c.fuse.cells = cells
	c.revision, c.tab = chip.Revision(s.Revision), tab
	c.fuse.use(tab)
	c.fuse.load()
	if c.supply {
		c.powerOff()
		c.powerOn()
	}
	return nil
}

func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			return nil, err
		case b == '\n':
			return line, nil
		case len(line) == limit:
			return nil, fmt.Errorf("longer than %d bytes", limit)
		}
		line = append(line, b)
	}
}

func formatWords(words []uint32) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%08x", w)
	}
	return b.String()
}

func parseWords(s string, n int) ([]uint32, error) {
	parts := strings.Split(s, " ")
	if len(parts) != n {
		return nil, fmt.Errorf("%d words, want %d", len(parts), n)
	}
	words := make([]uint32, n)
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 16, 32)
		if err != nil {
			return nil, fmt.Errorf("word %d is not hex", i)
		}
		words[i] = uint32(v)
	}
	if formatWords(words) != s {
		return nil, errors.New("words are eight lower-case hex digits each")
	}
	return words, nil
}

// SaveDir stores the chip in dir, which it makes if need be: the old state stays
// until the new one is on the disk.
func (c *Chip) SaveDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store the simulated chip: %w", err)
	}
	f, err := os.CreateTemp(dir, StateFile+".*") // mode 0600: it holds keys
	if err != nil {
		return fmt.Errorf("store the simulated chip: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when all went well
	w := bufio.NewWriter(f)
	err = errors.Join(c.Save(w), w.Flush(), f.Sync())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, StateFile))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("store the simulated chip in %s: %w", dir, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// LoadDir loads what SaveDir stored. It reports false if dir has no stored chip.
func (c *Chip) LoadDir(dir string) (bool, error) {
	path := filepath.Join(dir, StateFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("load the simulated chip: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := c.Load(f); err != nil {
		return false, fmt.Errorf("load the simulated chip from %s: %w", path, err)
	}
	return true, nil
}
