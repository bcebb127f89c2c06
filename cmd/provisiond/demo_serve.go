package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/config"
	"github.com/provisiond/provisiond/station/people"
)

// serve runs the demo as a station: simulated boards come and go in its slots, and
// a page shows them. Everything lies in dir.
func (c *demoCmd) serve(a *app, dir string) error {
	site, err := c.setUp(a, dir) // keystore, journal, recipes
	if err != nil {
		return err
	}
	site.close()
	password, err := demoPeople(filepath.Join(dir, "people.yaml"))
	if err != nil {
		return err
	}
	ports := filepath.Join(dir, "ports.d")
	if err := os.MkdirAll(ports, 0o700); err != nil {
		return err
	}
	var slots strings.Builder
	for i := range c.Slots {
		_, _ = fmt.Fprintf(&slots, "---\nslot: A%d\nport: sim://%s\n", i+1, site.jobs[i%len(site.jobs)].Recipe.Chip)
	}
	if err := os.WriteFile(filepath.Join(ports, "demo.yaml"), []byte(strings.TrimPrefix(slots.String(), "---\n")), 0o600); err != nil {
		return err
	}
	path := filepath.Join(dir, "station.yaml")
	// Quoted, as YAML takes a JSON string.
	text := fmt.Sprintf(`# Made by provisiond demo --serve.
station: demo
state: state
journal: {file: journal.db, signing_key: %q, anchor: %q}
keystore: keystore.db
recipes: [sample-*.yaml]
ports: ports.d
people: people.yaml
simulated: {pause: 3s, paced: true, faults: %q}
web: {listen: %q, open_board: true}
`, absolute(c.Keeping.SigningKey), absolute(c.Keeping.Anchor), c.Fault, c.Listen)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return &usageError{err}
	}
	d := &daemon{a: a, cfg: cfg, path: path}
	defer d.close()
	if err := d.open(); err != nil {
		return err
	}
	if err := c.openLots(a.ctx, d); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.out, "Log in as operator with PIN, or as engineer with password: %s\nCtrl-C ends it.\n", password)
	return d.run()
}

func absolute(name string) string {
	if name == "" || strings.Contains(name, ":") {
		return name
	}
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}

// demoPeople makes an operator and an engineer with one secret, new with each
// start, and gives it. It is a PIN too, so it has digits only.
func demoPeople(path string) (string, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := people.Init(path); err != nil {
		return "", err
	}
	var b [6]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	n := uint64(0)
	for _, v := range b {
		n = n<<8 | uint64(v)
	}
	secret := fmt.Sprintf("%012d", n%1_000_000_000_000)
	err := people.Add(path, people.Person{Name: "operator", Display: "Operator", Role: people.Operator}, people.Secret{Kind: people.PIN, Text: []byte(secret)})
	if err == nil {
		err = people.Add(path, people.Person{Name: "engineer", Display: "Engineer", Role: people.Engineer}, people.Secret{Kind: people.Password, Text: []byte(secret)})
	}
	return secret, err
}

// openLots opens a lot of each product, each for the slots with its chip.
func (c *demoCmd) openLots(ctx context.Context, d *daemon) error {
	if err := closeOld(ctx, d); err != nil {
		return err
	}
	size, _ := d.jrn.Head() // names that no earlier demo had
	view := d.station.View()
	for _, r := range d.station.Recipes() {
		var slots []string
		for _, s := range view.Slots {
			if s.Port == "sim://"+r.Chip {
				slots = append(slots, s.Name)
			}
		}
		if len(slots) == 0 {
			continue
		}
		_, err := d.station.OpenLot(ctx, demoPerson, station.LotRequest{
			ID: fmt.Sprintf("demo-%s-%d", r.Chip, size), Recipe: r.Name, Quantity: max(c.Units, 1000), Forever: true, Slots: slots,
			Serials: station.Serials{From: station.SerialsRange, First: fmt.Sprintf("D%d-000001", size)},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// closeOld ends the lots of an earlier demo in the same folder.
func closeOld(ctx context.Context, d *daemon) error {
	for _, l := range d.station.View().Lots {
		if err := d.station.CloseLot(ctx, demoPerson, l.ID); err != nil {
			return err
		}
	}
	return nil
}

var demoPerson = station.Person{Name: "demo", Role: "engineer"}
