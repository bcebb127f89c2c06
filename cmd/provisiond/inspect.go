package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

type inspectCmd struct {
	deviceFlags
	JSON bool `help:"Answer in JSON."`
}

func (c *inspectCmd) Run(a *app) error {
	dev, err := c.openToLook(a)
	if err != nil {
		return err
	}
	defer dev.close()
	in, err := provision.Inspect(a.ctx, dev.line, dev.trace)
	if err != nil {
		return err
	}
	if !c.JSON {
		return printInspection(a, in)
	}
	body := struct {
		*provision.Inspection
		Fields *efuse.Description `json:"efuse_fields,omitempty"`
	}{Inspection: in}
	if in.EFuse != nil {
		d := efuse.Describe(in.EFuse)
		body.Fields = &d
	}
	return json.NewEncoder(a.out).Encode(body)
}

// openToLook is open for a command that changes nothing: with --reset none the
// chip is expected in its loader.
func (d deviceFlags) openToLook(a *app) (*device, error) {
	if d.Reset != "none" || d.ResetCommand != "" {
		return d.open(a)
	}
	return d.openWith(a, func(*app, port.Port) (rom.Resetter, error) { return rom.NoReset{}, nil })
}

func printInspection(a *app, in *provision.Inspection) error {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format+"\n", args...) }
	p("chip        %s", strings.TrimSpace(in.Chip+" "+in.Revision))
	if in.Unit != "" {
		note := ""
		if in.Simulated {
			note = " (locally administered: a simulated unit)"
		}
		p("unit        %s%s", in.Unit, note)
	}
	if in.FlashID != "" {
		p("flash       %s, %d KB", in.FlashID, in.FlashSize>>10)
	}
	if in.FlashEncryption != nil {
		on := "off"
		if *in.FlashEncryption {
			on = "on"
		}
		p("encryption  %s", on)
	}
	if in.SecurityFlags != "" {
		p("security    %s", in.SecurityFlags)
	}
	if in.SecureDownload {
		p("loader      Secure Download Mode: eFuses and flash cannot be read")
		return nil
	}
	for _, k := range in.KeyBlocks {
		state := "in use"
		switch {
		case k.Free:
			state = "free"
		case !k.Fingerprint.IsZero():
			state = "readable, key " + k.Fingerprint.String()
		case k.ReadProtected:
			state = "hidden"
		}
		p("%-11s %s, %s", k.Name, state, k.Purpose)
	}
	p("")
	return efuse.Describe(in.EFuse).Text(a.out)
}
