package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/conf"
)

// purposeHMAC is the purpose of the key block that encimg_ecies burns.
const purposeHMAC = "HMAC_UP"

// flashPurposes is the purpose of the first key block of each scheme.
var flashPurposes = map[chip.Scheme]string{
	chip.SchemeESP32: "FLASH_ENCRYPTION", chip.SchemeXTS128: "XTS_AES_128_KEY", chip.SchemeXTS256: "XTS_AES_256_KEY_1",
	chip.SchemeXTSDerived: "XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS",
}

// hasScheme reports whether this build burns keys of a scheme on a chip.
func hasScheme(m chip.Model, s chip.Scheme) bool { return hasPurpose(m, flashPurposes[s]) }

func hasPurpose(m chip.Model, purpose string) bool {
	t, err := table.For(m.Name)
	if err != nil {
		return false
	}
	_, ok := t.Purpose(purpose)
	return ok
}

// Limits of single values.
const (
	maxName       = 64
	maxText       = 256
	maxImages     = 128
	maxLabel      = 16 // esp_partition_info_t has 16 bytes for a label (esp-facts D.3)
	minExpect     = 4
	minTimeout    = time.Second
	maxTimeout    = 5 * time.Minute
	maxRevision   = 999_999_999
	flashSector   = 0x1000 // what flash erases at once, and what the partition table occupies
	offsetExample = "write 0x10000 or a decimal number"
)

// bauds are the rates that common USB bridges reach without rounding.
var bauds = []uint64{115200, 230400, 460800, 921600, 1000000, 1500000, 2000000}

// The keys, in the order in which Encode writes them.
var (
	recipeKeys = []string{
		"recipe", "revision", "chip", "min_chip_revision", "max_chip_revision", "build", "images",
		"flash_size", "profile", "boot_check", "keep", "partition_table_offset", "baud",
		"unit_data", "encimg_ecies", "flash_encryption", "secure_boot", "anti_rollback", "accept_sdm_errata", "stub",
	}
	requiredKeys = []string{"recipe", "revision", "chip", "flash_size", "profile", "boot_check"}
	imageKeys    = []string{"offset", "file", "name"}
	bootKeys     = []string{"expect", "timeout"}
	unitDataKeys = []string{"partition", "template"}
)

// examples are what to write for a required key that is missing.
var examples = map[string]string{
	"recipe":     "write recipe: followed by the product's name, for example thermostat-c3",
	"revision":   "write revision: 1 and count it up with every change",
	"chip":       "write chip: followed by one of " + strings.Join(chip.Names(), ", "),
	"flash_size": "write the size of the board's flash, for example flash_size: 4MB",
	"profile":    "write profile: followed by one of " + profileList(),
	"boot_check": `write boot_check: {expect: "text that the application prints", timeout: 10s}`,
}

func profileList() string {
	names := make([]string, len(profiles))
	for i, p := range profiles {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}

// Parse reads a recipe. name is the file's name for errors and the place from
// which relative paths start. The error is Errors.
func Parse(name string, b []byte) (*Recipe, error) {
	d := &decoder{problems: problems{file: name}, lines: map[string]int{}}
	r := &Recipe{
		MaxChipRevision: NoMaxRevision,
		TableOffset:     DefaultTableOffset,
		Baud:            DefaultBaud,
	}
	if root := d.document(b); root != nil {
		d.strictNodes(root)
		d.recipe(root, r)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	r.src = source{file: name, lines: d.lines}
	return r, nil
}

type decoder struct {
	problems
	lines map[string]int
}

var yamlUnknown = regexp.MustCompile(`unknown anchor '([^']*)' referenced`)

// document gives the root node of the only document.
func (d *decoder) document(b []byte) *yaml.Node {
	switch {
	case len(b) > maxFile:
		d.add(0, "", fmt.Sprintf("is longer than %d bytes", maxFile), "a recipe is a page of YAML")
		return nil
	case !utf8.Valid(b):
		line := 1
		for rest := b; ; {
			r, n := utf8.DecodeRune(rest)
			if r == utf8.RuneError && n <= 1 {
				break
			}
			if r == '\n' {
				line++
			}
			rest = rest[n:]
		}
		d.add(line, "", "holds bytes that are not UTF-8", "save the file as UTF-8")
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		d.add(1, "", "is empty", "write a recipe (docs/recipe.md)")
		return nil
	}
	if err != nil {
		d.syntax(b, err)
		return nil
	}
	root := doc.Content[0]
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		d.add(second.Line, "", "a second YAML document begins here", "keep one recipe per file")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(b, err)
	}
	return root
}

// syntax reports what the YAML parser says, with its line moved to the front.
func (d *decoder) syntax(b []byte, err error) {
	line, msg := conf.Place(err)
	line = max(line, 1)
	if m := yamlUnknown.FindStringSubmatch(msg); m != nil {
		if at := bytes.Index(b, []byte("*"+m[1])); at >= 0 {
			line = 1 + bytes.Count(b[:at], []byte("\n"))
		}
		d.add(line, "", "an alias: *"+m[1], "write the value itself; recipes have no anchors and aliases")
		return
	}
	d.add(line, "", "is not YAML: "+msg, "correct the syntax around this line")
}

// strictNodes reports YAML features that hide what a recipe says.
func (d *decoder) strictNodes(n *yaml.Node) {
	if n.Anchor != "" {
		d.add(n.Line, "", "an anchor: &"+n.Anchor, "write the value itself; recipes have no anchors and aliases")
	}
	if n.Kind == yaml.AliasNode {
		d.add(n.Line, "", "an alias: *"+n.Value, "write the value itself; recipes have no anchors and aliases")
		return // what it stands for is elsewhere in the tree
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.add(n.Line, "", "an explicit tag: "+n.Tag, "remove it")
	}
	for _, c := range n.Content {
		d.strictNodes(c)
	}
}

// reported says that strictNodes has spoken about this node already.
func reported(n *yaml.Node) bool { return n.Kind == yaml.AliasNode || n.Style&yaml.TaggedStyle != 0 }

// mapping gives the values of a mapping by key, and reports keys that are
// unknown or repeated.
func (d *decoder) mapping(n *yaml.Node, path string, known []string, fix string) (map[string]*yaml.Node, bool) {
	if reported(n) {
		return nil, false
	}
	if n.Kind != yaml.MappingNode {
		d.add(n.Line, path, "is "+kindName(n)+", not a mapping", fix)
		return nil, false
	}
	values := map[string]*yaml.Node{}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if reported(k) {
			continue
		}
		if k.Kind != yaml.ScalarNode {
			d.add(k.Line, path, "a key that is "+kindName(k), "known keys are "+strings.Join(known, ", "))
			continue
		}
		p := keyPath(path, k.Value)
		switch {
		case !slices.Contains(known, k.Value):
			d.add(k.Line, p, "unknown key", "known are "+strings.Join(known, ", "))
		case first[k.Value] != 0:
			d.add(k.Line, p, fmt.Sprintf("repeated key, first on line %d", first[k.Value]), "keep one of them")
		default:
			first[k.Value] = k.Line
			values[k.Value] = v
			d.lines[p] = k.Line
		}
	}
	return values, true
}

func (d *decoder) sequence(n *yaml.Node, path, fix string) []*yaml.Node {
	if reported(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		d.add(n.Line, path, "is "+kindName(n)+", not a list", fix)
		return nil
	}
	if len(n.Content) == 0 {
		d.add(n.Line, path, "is an empty list", fix)
	}
	return n.Content
}

// kindName says what a node is, for "is %s, not a …".
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}

// word reads a text that must be one of a few words, which fix lists.
func (d *decoder) word(n *yaml.Node, path, fix string) (string, bool) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!str" && n.ShortTag() != "!!null" && !reported(n) {
		d.add(n.Line, path, clip(n.Value)+" is "+kindName(n), fix)
		return "", false
	}
	return d.text(n, path, maxName, fix)
}

// text reads a string: a scalar that every YAML version takes for one, on one
// line, without control characters.
func (d *decoder) text(n *yaml.Node, path string, most int, fix string) (string, bool) {
	if reported(n) {
		return "", false
	}
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!int", "!!float", "!!bool", "!!timestamp":
			d.add(n.Line, path, clip(n.Value)+" without quotes is "+kindName(n)+" in YAML", `quote it: "`+clip(n.Value)+`"`)
			return "", false
		}
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		d.add(n.Line, path, "is "+kindName(n)+", not text", fix)
		return "", false
	}
	if problem := badText(n.Value, most); problem != "" {
		d.add(n.Line, path, problem, fix)
		return "", false
	}
	return n.Value, true
}

// badText says what is wrong with a text value, or nothing.
func badText(s string, most int) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > most:
		return fmt.Sprintf("is longer than %d bytes", most)
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return quote(s) + " holds a character that does not print"
	}
	return ""
}

var (
	decimalRE = regexp.MustCompile(`^(0|[1-9][0-9]{0,9})$`)
	hexRE     = regexp.MustCompile(`^0x[0-9a-fA-F]{1,8}$`)
	octalRE   = regexp.MustCompile(`^0[0-9]+$`)
)

// number reads an integer from a plain scalar. Only forms that every YAML version
// reads alike are taken: 0123 is octal in YAML 1.1 and decimal in YAML 1.2.
func (d *decoder) number(n *yaml.Node, path string, hex bool, fix string) (uint64, bool) {
	if reported(n) {
		return 0, false
	}
	switch {
	case n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null":
		d.add(n.Line, path, "is "+kindName(n)+", not a number", fix)
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		d.add(n.Line, path, "is text, not a number", "remove the quotes and "+fix)
	case decimalRE.MatchString(n.Value):
		v, err := strconv.ParseUint(n.Value, 10, 64)
		return v, err == nil // ten digits always fit
	case hex && hexRE.MatchString(n.Value):
		v, err := strconv.ParseUint(n.Value[2:], 16, 64)
		return v, err == nil
	case octalRE.MatchString(n.Value):
		d.add(n.Line, path, clip(n.Value)+" is octal for some YAML readers and decimal for others", fix)
	default:
		d.add(n.Line, path, quote(n.Value)+" is not a whole number that can stand here", fix)
	}
	return 0, false
}

func (d *decoder) offset(n *yaml.Node, path, fix string) (uint32, bool) {
	v, ok := d.number(n, path, true, fix)
	if ok && v > 0xFFFFFFFF {
		d.add(n.Line, path, n.Value+" does not fit into 32 bits", fix)
		return 0, false
	}
	return uint32(v), ok
}

// filePath reads a path and cleans it.
func (d *decoder) filePath(n *yaml.Node, path, fix string) (string, bool) {
	s, ok := d.text(n, path, 4096, fix)
	if !ok {
		return "", false
	}
	return filepath.Clean(s), true
}

// chipRevision reads "0.3". Unquoted it would be a float, and 0.10 equal to 0.1.
func (d *decoder) chipRevision(n *yaml.Node, path string) (chip.Revision, bool) {
	const fix = `write major.minor in quotes, for example "0.3"`
	if n.Kind == yaml.ScalarNode && !reported(n) {
		if tag := n.ShortTag(); tag == "!!float" || tag == "!!int" {
			d.add(n.Line, path, clip(n.Value)+" without quotes is a number in YAML", fix)
			return 0, false
		}
	}
	s, ok := d.text(n, path, 16, fix)
	if !ok {
		return 0, false
	}
	v, err := chip.ParseRevision(s)
	if err != nil || strings.TrimPrefix(v.String(), "v") != strings.TrimPrefix(s, "v") {
		d.add(n.Line, path, quote(s)+" is not a chip revision", fix)
		return 0, false
	}
	return v, true
}

// recipe reads the whole tree into r.
func (d *decoder) recipe(root *yaml.Node, r *Recipe) {
	v, ok := d.mapping(root, "", recipeKeys, "write a recipe (docs/recipe.md)")
	if !ok {
		return
	}
	for _, k := range requiredKeys {
		if v[k] == nil {
			d.add(root.Line, k, "is missing", examples[k])
		}
	}
	has := func(k string) (*yaml.Node, bool) { n := v[k]; return n, n != nil }

	if n, ok := has("recipe"); ok {
		r.Name = d.name(n)
	}
	if n, ok := has("revision"); ok {
		const fix = "write a whole number from 1 upwards"
		if rev, ok := d.number(n, "revision", false, fix); ok {
			if rev < 1 || rev > maxRevision {
				d.add(n.Line, "revision", n.Value+fmt.Sprintf(" is not between 1 and %d", maxRevision), fix)
			}
			r.Revision = int(min(rev, maxRevision))
		}
	}
	knownChip := false
	if n, ok := has("chip"); ok {
		if s, ok := d.word(n, "chip", examples["chip"]); ok {
			m, err := chip.ByName(s)
			if err != nil {
				d.add(n.Line, "chip", quote(s)+" is not a chip that this build knows", examples["chip"])
			}
			knownChip = err == nil
			r.model, r.Chip = m, m.Name
		}
	}
	if n, ok := has("profile"); ok {
		if s, ok := d.word(n, "profile", examples["profile"]); ok {
			if !slices.Contains(profiles, Profile(s)) {
				d.add(n.Line, "profile", quote(s)+" is not a profile", examples["profile"])
			} else {
				r.Profile = Profile(s)
			}
		}
	}
	d.revisions(v["min_chip_revision"], v["max_chip_revision"], knownChip, r)
	d.sources(root, v["build"], v["images"], r)
	d.flash(v["flash_size"], v["partition_table_offset"], knownChip, r)
	if n, ok := has("boot_check"); ok {
		d.bootCheck(n, knownChip, r)
	}
	if n, ok := has("keep"); ok {
		d.keep(n, r)
	}
	if n, ok := has("unit_data"); ok {
		d.unitData(n, r)
	}
	if n, ok := has("encimg_ecies"); ok {
		r.ECIES = d.boolean(n, "encimg_ecies")
		if r.ECIES && knownChip && !hasPurpose(r.model, purposeHMAC) {
			d.add(n.Line, "encimg_ecies", fmt.Sprintf("%s has no key block with purpose %s, which esp_encrypted_img's ECIES form needs", r.model.Title, purposeHMAC),
				"remove it, or use the RSA form")
		}
	}
	if n, ok := has("flash_encryption"); ok {
		d.flashEncryption(n, knownChip, r)
	}
	if n, ok := has("secure_boot"); ok {
		d.secureBoot(n, knownChip, r)
	}
	if n, ok := has("anti_rollback"); ok {
		r.AntiRollback = d.boolean(n, "anti_rollback")
	}
	d.sdmErrata(root, v["accept_sdm_errata"], knownChip, r)
	if n, ok := has("stub"); ok {
		r.Stub, _ = d.filePath(n, "stub", "give the directory with esptool's stubs as JSON files")
	}
	if n, ok := has("baud"); ok {
		list := strings.Trim(strings.ReplaceAll(fmt.Sprint(bauds), " ", ", "), "[]")
		fix := "write one of " + list
		if baud, ok := d.number(n, "baud", false, fix); ok {
			if !slices.Contains(bauds, baud) {
				d.add(n.Line, "baud", n.Value+" is not a rate that can be asked for", fix)
			} else {
				r.Baud = int(baud)
			}
		}
	}
}

// sdmErrata demands that somebody knows what errata make of Secure Download Mode.
func (d *decoder) sdmErrata(root, n *yaml.Node, knownChip bool, r *Recipe) {
	if n != nil {
		r.AcceptSDMErrata = d.boolean(n, "accept_sdm_errata")
	}
	trap := r.model.Lockdown.ReleaseTrap
	switch {
	case !knownChip:
	case r.Profile == Release && trap != "" && !r.AcceptSDMErrata:
		d.add(max(d.lines["profile"], root.Line), "profile",
			fmt.Sprintf("release ends in Secure Download Mode, which on %s is a trap by %s: the loader may not reach its flash any more", r.model.Title, trap),
			"take profile hybrid or closed; or, if it was tried on exactly this silicon, write accept_sdm_errata: true")
	case r.AcceptSDMErrata && (r.Profile != Release || trap == ""):
		d.add(n.Line, "accept_sdm_errata", "there is nothing to accept: the recipe does not end in a Secure Download Mode with errata", "remove it")
	}
}

// boolean reads true or false, the only words for them.
func (d *decoder) boolean(n *yaml.Node, path string) bool {
	switch {
	case reported(n):
	case n.Kind != yaml.ScalarNode || n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 || n.Value != "true" && n.Value != "false":
		d.add(n.Line, path, "is neither true nor false", "write true or false, without quotes")
	}
	return n.Value == "true"
}

// unitData reads what is each unit's own. The template is read with the images.
func (d *decoder) unitData(n *yaml.Node, r *Recipe) {
	const fix = "write unit_data: {partition: unit, template: unit.tmpl}"
	v, ok := d.mapping(n, "unit_data", unitDataKeys, fix)
	if !ok {
		return
	}
	for _, k := range unitDataKeys {
		if v[k] == nil {
			d.add(n.Line, "unit_data."+k, "is missing", fix)
			ok = false
		}
	}
	if !ok {
		return
	}
	u := UnitData{}
	u.Partition, _ = d.text(v["partition"], "unit_data.partition", maxLabel, "write the label of a partition, as it stands in partitions.csv")
	u.Template, _ = d.filePath(v["template"], "unit_data.template", "write the path of a text template, relative to the recipe")
	if slices.Contains(r.Keep, u.Partition) {
		d.add(v["partition"].Line, "unit_data.partition", quote(u.Partition)+" is listed in keep, which leaves it as it is", "keep one of them")
	}
	r.UnitData = &u
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func (d *decoder) name(n *yaml.Node) string {
	const fix = "write small letters, digits and dashes, for example thermostat-c3"
	s, ok := d.text(n, "recipe", maxName, fix)
	if ok && !nameRE.MatchString(s) {
		d.add(n.Line, "recipe", quote(s)+" is not a name", fix)
	}
	return s
}

func (d *decoder) revisions(low, high *yaml.Node, knownChip bool, r *Recipe) {
	lowOK := true
	if low != nil {
		r.MinChipRevision, lowOK = d.chipRevision(low, "min_chip_revision")
	}
	if high == nil {
		return
	}
	limit, ok := d.chipRevision(high, "max_chip_revision")
	if !ok {
		return
	}
	r.MaxChipRevision = limit
	if lowOK && r.MaxChipRevision < r.MinChipRevision {
		d.add(high.Line, "max_chip_revision", fmt.Sprintf("%s is below min_chip_revision %s", r.MaxChipRevision, r.MinChipRevision),
			"no chip fits both; correct one of them")
	}
	if floor := r.model.Lockdown.ClosedMinimum; knownChip && closesForever(r.model, r.Profile) && r.MaxChipRevision < floor {
		d.add(high.Line, "max_chip_revision",
			fmt.Sprintf("%s ignores %s before %s, so profile %s cannot be reached", r.model.Title, r.model.Lockdown.ClosedFuse, floor, r.Profile),
			fmt.Sprintf("allow %s or newer, or take profile hybrid", floor))
	}
}

// sources reads build or images: one of them, not both.
func (d *decoder) sources(root, build, images *yaml.Node, r *Recipe) {
	const fix = "write build: with an ESP-IDF build directory, or images: [{offset: 0x10000, file: app.bin}, …]"
	switch {
	case build == nil && images == nil:
		d.add(root.Line, "build", "neither build nor images is given", fix)
	case build != nil && images != nil:
		d.add(d.lines["images"], "images", fmt.Sprintf("build is given too, on line %d", d.lines["build"]), "keep one of them")
	}
	if build != nil {
		r.Build, _ = d.filePath(build, "build", "write the path of an ESP-IDF build directory, the one with flasher_args.json")
	}
	if images == nil {
		return
	}
	items := d.sequence(images, "images", "write a list: [{offset: 0x10000, file: app.bin}, …]")
	if len(items) > maxImages {
		d.add(images.Line, "images", fmt.Sprintf("has %d entries", len(items)), fmt.Sprintf("at most %d can be written", maxImages))
		return
	}
	seen := map[uint32]int{}
	for i, item := range items {
		ref, at, ok := d.image(item, indexPath("images", i))
		if !ok {
			continue
		}
		if first, dup := seen[ref.Offset]; dup {
			d.add(at, indexPath("images", i)+".offset", fmt.Sprintf("0x%x is the offset of images[%d] too", ref.Offset, first),
				"write one file per offset")
			continue
		}
		seen[ref.Offset] = i
		r.Images = append(r.Images, ref)
	}
}

// image reads one entry of images. at is the line of its offset.
func (d *decoder) image(n *yaml.Node, path string) (ref ImageRef, at int, ok bool) {
	const fix = "write {offset: 0x10000, file: app.bin}"
	v, ok := d.mapping(n, path, imageKeys, fix)
	if !ok {
		return ref, 0, false
	}
	d.lines[path] = n.Line
	for _, k := range []string{"offset", "file"} {
		if v[k] == nil {
			d.add(n.Line, path+"."+k, "is missing", fix)
			ok = false
		}
	}
	if o := v["offset"]; o != nil {
		var good bool
		ref.Offset, good = d.offset(o, path+".offset", offsetExample)
		at, ok = o.Line, ok && good
	}
	if f := v["file"]; f != nil {
		const fix = "write the path of the image, relative to the recipe"
		var good bool
		if ref.File, good = d.filePath(f, path+".file", fix); good {
			if base := filepath.Base(ref.File); base == "." || base == ".." || base == "/" {
				d.add(f.Line, path+".file", quote(f.Value)+" is a directory", fix)
				good = false
			}
		}
		ref.Name = filepath.Base(ref.File)
		ok = ok && good
	}
	if m := v["name"]; m != nil {
		var good bool
		ref.Name, good = d.text(m, path+".name", maxText, "write a name for reports, or remove it")
		ok = ok && good
	}
	return ref, at, ok
}

// flash reads flash_size and partition_table_offset.
func (d *decoder) flash(size, table *yaml.Node, knownChip bool, r *Recipe) {
	if size != nil {
		if s, ok := d.word(size, "flash_size", examples["flash_size"]); ok {
			v, err := ParseSize(s)
			switch {
			case err != nil:
				d.add(size.Line, "flash_size", quote(s)+" is not a flash size", "write 1MB, 2MB, 4MB, 8MB, 16MB, 32MB, 64MB or 128MB")
			case knownChip && uint32(v) > r.model.MaxFlash:
				d.add(size.Line, "flash_size", fmt.Sprintf("%s is more than %s can address", v, r.model.Title),
					fmt.Sprintf("write %s or less", Size(r.model.MaxFlash)))
			default:
				r.FlashSize = v
			}
		}
	}
	if table == nil {
		return
	}
	const key = "partition_table_offset"
	const fix = "write CONFIG_PARTITION_TABLE_OFFSET of the build, for example 0x8000"
	off, ok := d.offset(table, key, fix)
	if !ok {
		return
	}
	// Without a chip the lowest bootloader of the family is at 0.
	lowest := r.model.BootloaderOffset + flashSector
	switch {
	case off%flashSector != 0:
		d.add(table.Line, key, fmt.Sprintf("0x%x is not a multiple of 0x%x", off, flashSector), fix)
	case off < lowest:
		d.add(table.Line, key, fmt.Sprintf("0x%x leaves no room for the bootloader at 0x%x", off, r.model.BootloaderOffset), fix)
	case r.FlashSize != 0 && uint64(off)+flashSector > uint64(r.FlashSize):
		d.add(table.Line, key, fmt.Sprintf("0x%x is outside a flash of %s", off, r.FlashSize), fix)
	}
	r.TableOffset = off
}

func (d *decoder) bootCheck(n *yaml.Node, knownChip bool, r *Recipe) {
	fix := examples["boot_check"]
	if n.Kind == yaml.ScalarNode && !reported(n) {
		if n.Value != "off" {
			d.add(n.Line, "boot_check", quote(n.Value)+" is not a boot check", fix+", or off")
			return
		}
		if r.Profile == Release || r.Profile == Closed {
			d.add(n.Line, "boot_check", "off is allowed for the profiles development and hybrid only, and this is "+string(r.Profile),
				"a unit that was never seen to boot must not be closed: "+fix)
		}
		return
	}
	v, ok := d.mapping(n, "boot_check", bootKeys, fix)
	if !ok {
		return
	}
	if e := v["expect"]; e == nil {
		d.add(n.Line, "boot_check.expect", "is missing", fix)
	} else {
		r.BootCheck.Expect = d.expect(e, knownChip, r.model)
	}
	r.BootCheck.Timeout = DefaultBootCheckTimeout
	if t := v["timeout"]; t != nil {
		const fix = "write a time from 1s to 5m with its unit, for example 10s"
		if s, ok := d.duration(t, "boot_check.timeout", fix); ok {
			if s < minTimeout || s > maxTimeout {
				d.add(t.Line, "boot_check.timeout", t.Value+" is too short or too long", fix)
			}
			r.BootCheck.Timeout = s
		}
	}
}

// expect reads the text that proves that the application runs. Text that the ROM
// prints before any application, and text so short that noise may hold it, prove
// nothing.
func (d *decoder) expect(n *yaml.Node, knownChip bool, m chip.Model) string {
	const path, fix = "boot_check.expect", "write a text that only the running application prints"
	s, ok := d.text(n, path, maxText, fix)
	if !ok {
		return ""
	}
	if len(s) < minExpect {
		d.add(n.Line, path, fmt.Sprintf("%s is shorter than %d bytes", quote(s), minExpect), fix)
	}
	if strings.TrimSpace(s) == "" {
		d.add(n.Line, path, "is nothing but spaces", fix)
	}
	if knownChip {
		rom := append([][]byte{m.ROM.Banner, m.ROM.DownloadDisabled, m.ROM.SecureBanner}, m.ROM.DownloadBanner...)
		for _, line := range rom {
			// A banner may be known by its first bytes only.
			if bytes.Contains(line, []byte(s)) || strings.HasPrefix(s, string(m.ROM.Banner)) {
				d.add(n.Line, path, fmt.Sprintf("%s is printed by the ROM of %s itself (%q)", quote(s), m.Title, line), fix)
				break
			}
		}
	}
	return s
}

// duration reads a time with its unit.
func (d *decoder) duration(n *yaml.Node, path, fix string) (time.Duration, bool) {
	if n.Kind == yaml.ScalarNode && !reported(n) {
		if tag := n.ShortTag(); tag == "!!int" || tag == "!!float" {
			d.add(n.Line, path, clip(n.Value)+" has no unit", fix)
			return 0, false
		}
	}
	s, ok := d.text(n, path, maxName, fix)
	if !ok {
		return 0, false
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		d.add(n.Line, path, quote(s)+" is not a time", fix)
		return 0, false
	}
	return v, true
}

func (d *decoder) keep(n *yaml.Node, r *Recipe) {
	items := d.sequence(n, "keep", "write a list of partition labels, or remove it")
	for i, item := range items {
		const fix = "write the label of a partition, as it stands in partitions.csv"
		path := indexPath("keep", i)
		d.lines[path] = item.Line
		s, ok := d.text(item, path, maxLabel, fix)
		switch {
		case !ok:
		case s == "nvs" || s == "nvs_keys":
			d.add(item.Line, path, s+" is always erased: its old contents belong to another key", "remove it from the list")
		case slices.Contains(r.Keep, s):
			d.add(item.Line, path, quote(s)+" is listed twice", "keep one of them")
		default:
			r.Keep = append(r.Keep, s)
		}
	}
}
