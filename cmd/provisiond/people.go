package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/provisiond/provisiond/station/people"
)

type peopleCmd struct {
	Init   peopleInitCmd   `cmd:"" help:"Make a file of people with nobody in it."`
	Add    peopleAddCmd    `cmd:"" help:"Add a person. The secrets are read from the terminal or, one line each, from standard input."`
	List   peopleListCmd   `cmd:"" help:"List who may log in, and by what; never a hash."`
	Remove peopleRemoveCmd `cmd:"" help:"Remove a person; whoever is logged in as them is logged out."`
	Passwd peoplePasswdCmd `cmd:"" help:"Set a person's password, PIN or badge anew, or take one away."`
}

type peopleFile struct {
	File string `arg:"" help:"The file of people." placeholder:"FILE"`
	JSON bool   `help:"Answer in JSON."`
}

type peopleName struct {
	Name string `arg:"" help:"For logins and the journal: small letters, digits, and . _ - between them." placeholder:"NAME"`
}

type peopleKinds struct {
	Badge bool `help:"Of an operator: the badge, as its reader types it."`
	PIN   bool `help:"Of an operator: a PIN of 6 to 12 digits."`
}

// kinds are the secrets that the flags name; an engineer's and auditor's goes
// without saying.
func (k peopleKinds) kinds(r people.Role) ([]people.Kind, error) {
	if r != people.Operator {
		if k.Badge || k.PIN {
			return nil, usage("--badge and --pin are for operators: an %s logs in by password", r)
		}
		return []people.Kind{people.Password}, nil
	}
	var list []people.Kind
	if k.Badge {
		list = append(list, people.Badge)
	}
	if k.PIN {
		list = append(list, people.PIN)
	}
	if len(list) == 0 {
		return nil, usage("name what the operator logs in by: --badge, --pin or both")
	}
	return list, nil
}

// answer prints what was done.
func (f peopleFile) answer(a *app, done, name, text string) error {
	if f.JSON {
		body := map[string]any{"people": f.File, "done": done}
		if name != "" {
			body["name"] = name
		}
		return json.NewEncoder(a.out).Encode(body)
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}

// peopleError gives the exit code: what somebody wrote is a wrong call, what a
// disk does is not.
func peopleError(err error) error {
	var (
		file *people.FileError
		path *fs.PathError
		link *os.LinkError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &file):
		return &usageError{err}
	case errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist), errors.As(err, &link):
		return err
	}
	return &usageError{err}
}

type peopleInitCmd struct{ peopleFile }

func (c *peopleInitCmd) Run(a *app) error {
	if err := people.Init(c.File); err != nil {
		return peopleError(err)
	}
	return c.answer(a, "init", "", "made "+c.File+", with nobody in it: add people with `provisiond people add`")
}

type peopleAddCmd struct {
	peopleFile
	peopleName
	Role    string `help:"operator, engineer or auditor." required:"" placeholder:"ROLE"`
	Display string `help:"The name on screens. Default: NAME." placeholder:"TEXT"`
	peopleKinds
}

func (c *peopleAddCmd) Run(a *app) error {
	p := people.Person{Name: c.Name, Display: c.Display, Role: people.Role(c.Role)}
	if p.Display == "" {
		p.Display = p.Name
	}
	if people.Kinds(p.Role) == nil {
		return usage("--role %s: there are operator, engineer and auditor", c.Role)
	}
	kinds, err := c.kinds(p.Role)
	if err != nil {
		return err
	}
	// Nobody is to type a secret for nothing.
	list, err := people.List(c.File)
	if err != nil {
		return peopleError(err)
	}
	for _, e := range list {
		if e.Name == p.Name {
			return usage("%s is in %s already: change them with `provisiond people passwd`, or remove them first", p.Name, c.File)
		}
	}
	secrets, err := a.secrets(p.Name, kinds)
	if err != nil {
		return err
	}
	defer wipe(secrets)
	if err := people.Add(c.File, p, secrets...); err != nil {
		return peopleError(err)
	}
	return c.answer(a, "add", p.Name, fmt.Sprintf("added %s %s", p.Role, p.Name))
}

type peopleListCmd struct{ peopleFile }

func (c *peopleListCmd) Run(a *app) error {
	list, err := people.List(c.File)
	if err != nil {
		return peopleError(err)
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"people": list})
	}
	for _, e := range list {
		var by []string
		for _, k := range e.LogsInBy {
			by = append(by, string(k))
		}
		if _, err := fmt.Fprintf(a.out, "%-20s  %-8s  %-14s  %s\n", e.Name, e.Role, strings.Join(by, ", "), e.Display); err != nil {
			return err
		}
	}
	return nil
}

type peopleRemoveCmd struct {
	peopleFile
	peopleName
}

func (c *peopleRemoveCmd) Run(a *app) error {
	if err := people.Remove(c.File, c.Name); err != nil {
		return peopleError(err)
	}
	return c.answer(a, "remove", c.Name, "removed "+c.Name)
}

type peoplePasswdCmd struct {
	peopleFile
	peopleName
	peopleKinds
	Clear bool `help:"Take the badge or the PIN away; the other one stays."`
}

func (c *peoplePasswdCmd) Run(a *app) error {
	list, err := people.List(c.File)
	if err != nil {
		return peopleError(err)
	}
	var role people.Role
	for _, e := range list {
		if e.Name == c.Name {
			role = e.Role
		}
	}
	if role == "" {
		return usage("%s: nobody in it is called %q; `provisiond people list` shows the names", c.File, c.Name)
	}
	kinds, err := c.kinds(role)
	if err != nil {
		return err
	}
	if len(kinds) > 1 {
		return usage("name one of --badge and --pin")
	}
	secret := people.Secret{Kind: kinds[0]}
	done := "took away the " + string(secret.Kind)
	if !c.Clear {
		secrets, err := a.secrets(c.Name, kinds)
		if err != nil {
			return err
		}
		defer wipe(secrets)
		secret, done = secrets[0], "set the "+string(secret.Kind)
	}
	if err := people.SetSecret(c.File, c.Name, secret); err != nil {
		return peopleError(err)
	}
	return c.answer(a, "passwd", c.Name, done+" of "+c.Name)
}

func wipe(secrets []people.Secret) {
	for _, s := range secrets {
		clear(s.Text)
	}
}

// secrets reads one secret of each kind: from a terminal without echo, and what
// fingers type twice; from anything else, a line each.
func (a *app) secrets(name string, kinds []people.Kind) ([]people.Secret, error) {
	fd, tty := terminal(a.in)
	lines := bufio.NewReader(a.in)
	var list []people.Secret
	for _, k := range kinds {
		var text []byte
		var err error
		if tty {
			text, err = a.ask(fd, name, k)
		} else {
			text, err = secretLine(lines, k)
		}
		if err == nil {
			s := people.Secret{Kind: k, Text: text}
			list = append(list, s)
			if err = people.CheckSecret(s); err != nil {
				err = &usageError{err}
			}
		}
		if err != nil {
			wipe(list)
			return nil, err
		}
	}
	return list, nil
}

func secretLine(r *bufio.Reader, k people.Kind) ([]byte, error) {
	line, err := r.ReadSlice('\n') // of bufio's 4096 bytes at most
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, usage("the %s on standard input cannot be read: %w", k, err)
	}
	text := bytes.Clone(bytes.TrimRight(line, "\r\n"))
	clear(line)
	if len(text) == 0 {
		return nil, usage("standard input has no line with the %s", k)
	}
	return text, nil
}

func (a *app) ask(fd int, name string, k people.Kind) ([]byte, error) {
	text, err := a.prompt(fd, fmt.Sprintf("%s of %s: ", k, name))
	if err != nil || k == people.Badge {
		return text, err
	}
	again, err := a.prompt(fd, fmt.Sprintf("%s of %s, again: ", k, name))
	if err != nil {
		clear(text)
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(text, again) {
		clear(text)
		return nil, usage("they are not the same: nothing was changed")
	}
	return text, nil
}

// prompt reads a line without echo. Ctrl-C ends it and gives the echo back.
func (a *app) prompt(fd int, text string) ([]byte, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return nil, usage("this terminal cannot hide what is typed: %w; give the secrets on standard input", err)
	}
	_, _ = fmt.Fprint(a.errOut, text)
	type result struct {
		line []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		read <- result{line, err}
	}()
	defer func() { _, _ = fmt.Fprintln(a.errOut) }()
	select {
	case r := <-read:
		if r.err != nil {
			return nil, usage("nothing was typed: %w", r.err)
		}
		return r.line, nil
	case <-a.ctx.Done():
		return nil, errors.Join(context.Cause(a.ctx), term.Restore(fd, before))
	}
}
