package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/provisiond/provisiond/provision/ota/release"
)

type otaReleaseCmd struct {
	Init    otaReleaseInitCmd    `cmd:"" help:"Make the store of an OTA server, sealed to an age identity."`
	Add     otaReleaseAddCmd     `cmd:"" help:"Add an application image. Nobody is offered it before a rollout."`
	List    otaReleaseListCmd    `cmd:"" help:"Show all releases, and the rollouts of every channel."`
	Show    otaReleaseShowCmd    `cmd:"" help:"Show one release, its rollouts and what units reported."`
	Rollout otaReleaseRolloutCmd `cmd:"" help:"Set the share of a channel's units that is offered a release."`
	Halt    otaReleaseHaltCmd    `cmd:"" help:"Take a release back from everybody until it is resumed."`
	Resume  otaReleaseResumeCmd  `cmd:"" help:"End a halt."`
	Remove  otaReleaseRemoveCmd  `cmd:"" help:"Remove a release that nobody is offered, and its image."`
	Channel otaReleaseChannelCmd `cmd:"" help:"Say whether units of a channel may have images in plaintext over TLS."`
}

// releaseArg is the release that a command is about.
type releaseArg struct {
	Release string `arg:"" help:"The release's name."`
}

type otaReleaseInitCmd struct {
	otaStateFlags
	Identity string `help:"The age identity file to seal to; made if it is missing. Default: releases.identity in the folder." placeholder:"FILE"`
}

func (c *otaReleaseInitCmd) Run(a *app) error {
	dir, err := c.dir()
	if err != nil {
		return err
	}
	identity, err := release.Init(dir, c.Identity)
	if err != nil {
		return otaFailure(err)
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]string{"state": dir, "identity": identity})
	}
	_, err = fmt.Fprintf(a.out, "%s: made; the server opens its images with the identity %s: keep a copy of it\n", dir, identity)
	return err
}

type otaReleaseAddCmd struct {
	releaseArg
	otaStateFlags
	In     string   `help:"The application image, in plaintext." required:"" placeholder:"F"`
	Recipe []string `help:"Only for units that were made with this recipe. May be repeated; without it for all units with the image's chip." placeholder:"R"`
}

func (c *otaReleaseAddCmd) Run(a *app) error {
	b, err := readLimited(c.In, maxImage)
	if err != nil {
		return usage("--in: %w", err)
	}
	return c.do(a, otaRequest{Op: "add", Release: c.Release, Image: b, Recipes: c.Recipe}, showReleases)
}

type otaReleaseListCmd struct{ otaStateFlags }

func (c *otaReleaseListCmd) Run(a *app) error { return c.do(a, otaRequest{Op: "list"}, showReleases) }

type otaReleaseShowCmd struct {
	releaseArg
	otaStateFlags
}

func (c *otaReleaseShowCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "show", Release: c.Release}, showReleases)
}

type otaReleaseRolloutCmd struct {
	releaseArg
	otaStateFlags
	Channel string `help:"The channel; made if there is none." default:"stable" placeholder:"C"`
	Percent string `help:"The share of its units, 0 to 100, with at most two decimals." required:"" placeholder:"P"`
}

func (c *otaReleaseRolloutCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "rollout", Release: c.Release, Channel: c.Channel, Share: c.Percent}, showReleases)
}

type otaReleaseHaltCmd struct {
	releaseArg
	otaStateFlags
	Reason string `help:"Why, for people." required:"" placeholder:"TEXT"`
}

func (c *otaReleaseHaltCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "halt", Release: c.Release, Why: c.Reason}, showReleases)
}

type otaReleaseResumeCmd struct {
	releaseArg
	otaStateFlags
}

func (c *otaReleaseResumeCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "resume", Release: c.Release}, showReleases)
}

type otaReleaseRemoveCmd struct {
	releaseArg
	otaStateFlags
}

func (c *otaReleaseRemoveCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "remove", Release: c.Release}, showReleases)
}

type otaReleaseChannelCmd struct {
	Channel string `arg:"" help:"The channel."`
	otaStateFlags
	Plaintext string `help:"on or off. On: who steals a unit's token gets the image in plaintext." enum:"on,off" required:""`
}

func (c *otaReleaseChannelCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "plaintext", Channel: c.Channel, Plaintext: c.Plaintext == "on"}, showReleases)
}

type otaUnitCmd struct {
	Show    otaUnitShowCmd    `cmd:"" help:"Show a unit: its channel, pin, last result, and in which rollouts it is."`
	Pin     otaUnitPinCmd     `cmd:"" help:"Give a unit one release whatever its channel says, or take the pin away."`
	Channel otaUnitChannelCmd `cmd:"" help:"Put a unit into a channel."`
}

type unitArg struct {
	Unit string `arg:"" help:"The unit's base MAC."`
}

type otaUnitShowCmd struct {
	unitArg
	otaStateFlags
}

func (c *otaUnitShowCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "unit", Unit: c.Unit}, showUnit)
}

type otaUnitPinCmd struct {
	unitArg
	otaStateFlags
	Release string `help:"The release." placeholder:"NAME"`
	None    bool   `help:"Take the pin away."`
}

func (c *otaUnitPinCmd) Run(a *app) error {
	if (c.Release == "") != c.None {
		return usage("give --release NAME, or --none to take the pin away")
	}
	return c.do(a, otaRequest{Op: "pin", Unit: c.Unit, Release: c.Release}, showUnit)
}

type otaUnitChannelCmd struct {
	unitArg
	otaStateFlags
	Channel string `help:"The channel." required:"" placeholder:"C"`
}

func (c *otaUnitChannelCmd) Run(a *app) error {
	return c.do(a, otaRequest{Op: "channel", Unit: c.Unit, Channel: c.Channel}, showUnit)
}

// do does an operation and shows its answer.
func (f otaStateFlags) do(a *app, q otaRequest, show func(io.Writer, *otaAnswer) error) error {
	dir, err := f.dir()
	if err != nil {
		return err
	}
	answer, err := a.otaDo(dir, q)
	if err != nil {
		return err
	}
	if f.JSON {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		return e.Encode(answer)
	}
	return show(a.out, answer)
}

func showReleases(out io.Writer, a *otaAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(a.Releases) > 0 {
		_, _ = fmt.Fprintln(w, "RELEASE\tCHIP\tPROJECT\tVERSION\tSECURE\tSIZE\tADDED\tBY\tSTATE")
	}
	for _, r := range a.Releases {
		state := "ready"
		if r.Halted {
			state = "HALTED: " + r.Why
		}
		if len(r.Recipes) > 0 {
			state += " (recipes " + strings.Join(r.Recipes, ", ") + ")"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", r.Name, r.Chip, r.Project, r.Version, r.SecureVersion, r.Length, r.Added.Format(time.RFC3339), r.By, state)
	}
	for _, r := range a.Releases {
		if len(a.Releases) == 1 {
			_, _ = fmt.Fprintf(w, "sha256\t%s\n", r.SHA256)
			for _, o := range []release.Outcome{release.Applied, release.Failed, release.Confirmed, release.RolledBack} {
				_, _ = fmt.Fprintf(w, "%s\t%d\n", o, r.Results[o])
			}
		}
	}
	for _, c := range a.Channels {
		note := ""
		if c.Plaintext {
			note = " (plaintext allowed)"
		}
		_, _ = fmt.Fprintf(w, "channel %s%s\n", c.Name, note)
		for _, x := range c.Rollouts {
			_, _ = fmt.Fprintf(w, "  %s\t%s %%\tsince %s\tby %s\n", x.Release, x.Share, x.Since.Format(time.RFC3339), x.By)
		}
	}
	return w.Flush()
}

func showUnit(out io.Writer, a *otaAnswer) error {
	u := a.Unit
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	pin := "none"
	if u.Pin != "" {
		pin = u.Pin
	}
	_, _ = fmt.Fprintf(w, "unit\t%s\nchannel\t%s\npin\t%s\nsecure version\t%d\n", u.MAC, u.Channel, pin, u.SecureVersion)
	if u.RolledBack != "" {
		_, _ = fmt.Fprintf(w, "rolled back from\t%s\n", u.RolledBack)
	}
	if r := u.Last; r != nil {
		_, _ = fmt.Fprintf(w, "last result\t%s %s %s at %s; runs %s; %s\n", r.Outcome, r.Release, r.Slot, r.Time.Format(time.RFC3339), r.Version, r.Reason)
	}
	for _, o := range u.Offers {
		in := "not in the share"
		if o.In {
			in = "in the share"
		}
		if o.Halted {
			in += ", halted"
		}
		_, _ = fmt.Fprintf(w, "rollout %s\t%s %%: %s\n", o.Release, o.Share, in)
	}
	return w.Flush()
}
