package recipe

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
)

// maxImage limits one file and all files together: the largest flash that an
// image header can name. Files that do not fit the recipe's flash are refused
// later, by their partition.
const maxImage = 128 << 20

// File is one file of a product, as it was on disk at one moment.
type File struct {
	Offset uint32
	Name   string // for reports
	Path   string // where it was read
	Data   []byte
	SHA256 [sha256.Size]byte
}

// LoadImages reads every file of the recipe once, in the order of the offsets.
// A build directory's flasher_args.json must agree with the recipe's chip, flash
// size and partition table offset. The error is Errors.
func (r *Recipe) LoadImages() ([]File, error) {
	var files []File
	var err error
	if r.Build != "" {
		files, err = r.loadBuild()
	} else {
		files, err = r.loadList()
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Offset, b.Offset) })
	return files, nil
}

// loadList reads the files that the recipe lists itself.
func (r *Recipe) loadList() ([]File, error) {
	var files []File
	var errs Errors
	rest := int64(maxImage)
	for i, ref := range r.Images {
		path := r.resolve(ref.File)
		f, err := readImage(osOpener{}, path, &rest)
		if err != nil {
			errs = append(errs, r.FieldError(indexPath("images", i)+".file", fmt.Sprintf("%s: %v", path, err),
				"correct the path or build the firmware first"))
			continue
		}
		f.Offset, f.Name, f.Path = ref.Offset, ref.Name, path
		files = append(files, f)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return files, nil
}

// loadBuild reads the files of an ESP-IDF build directory. Nothing outside the
// directory is read: os.Root also stops symbolic links that lead out of it.
func (r *Recipe) loadBuild() ([]File, error) {
	const buildFix = "give an ESP-IDF build directory and run idf.py build in its project first"
	dir := r.resolve(r.Build)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, Errors{r.FieldError("build", plain(err), buildFix)}
	}
	defer func() { _ = root.Close() }()
	argsPath := filepath.Join(dir, FlasherArgsName)
	b, err := readLimited(root, FlasherArgsName, maxFile)
	if err != nil {
		return nil, Errors{r.FieldError("build", argsPath+": "+err.Error(), buildFix)}
	}
	args, err := ParseFlasherArgs(argsPath, b)
	if err != nil {
		return nil, err
	}
	if errs := r.compare(argsPath, args); len(errs) > 0 {
		return nil, errs
	}
	var files []File
	var errs Errors
	rest := int64(maxImage)
	for _, ref := range args.Files {
		f, err := readImage(root, filepath.FromSlash(ref.File), &rest)
		if err != nil {
			errs = append(errs, &Error{
				File: argsPath, Line: ref.line, Field: flashFilesPath(ref.Offset),
				Problem: filepath.Join(dir, ref.File) + ": " + err.Error(),
				Fix:     "build the firmware again; files outside the build directory go into images: of the recipe",
			})
			continue
		}
		f.Offset, f.Name, f.Path = ref.Offset, ref.Name, filepath.Join(dir, ref.File)
		files = append(files, f)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return files, nil
}

// compare reports where the build and the recipe disagree.
func (r *Recipe) compare(path string, args *FlasherArgs) Errors {
	var errs Errors
	add := func(field, problem, fix string) { errs = append(errs, r.FieldError(field, problem, fix)) }
	if m, err := chip.ByName(args.Chip); err != nil || m.Name != r.Chip {
		add("chip", fmt.Sprintf("%s is a build for %s, the recipe is for %s", path, quote(args.Chip), r.Chip),
			"build for the recipe's chip (idf.py set-target) or correct the recipe")
	}
	// detect and keep leave the size to the flashing tool. The recipe states it.
	if s := args.FlashSize; s != "detect" && s != "keep" && s != r.FlashSize.String() {
		add("flash_size", fmt.Sprintf("%s is a build for %s, the recipe says %s", path, quote(s), r.FlashSize),
			"set CONFIG_ESPTOOLPY_FLASHSIZE in the project and build again, or correct the recipe")
	}
	if o := args.TableOffset; o != nil && *o != r.TableOffset {
		add("partition_table_offset", fmt.Sprintf("%s has the table at 0x%x, the recipe at 0x%x", path, *o, r.TableOffset),
			fmt.Sprintf("write partition_table_offset: 0x%x", *o))
	}
	return errs
}

// readImage reads one file within what is left of the common limit.
func readImage(o opener, name string, rest *int64) (File, error) {
	b, err := readLimited(o, name, *rest)
	if err != nil {
		return File{}, err
	}
	if len(b) == 0 {
		return File{}, errors.New("the file is empty")
	}
	*rest -= int64(len(b))
	return File{Data: b, SHA256: sha256.Sum256(b)}, nil
}

// readLimited reads a regular file of at most limit bytes. The type is looked at
// before the file is opened, because opening a FIFO would wait for its writer.
// Errors do not repeat the path.
func readLimited(o opener, name string, limit int64) ([]byte, error) {
	info, err := o.Stat(name)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	tooLarge := fmt.Errorf("is too large: %d bytes are left of what a recipe may load", limit)
	if info.Size() > limit {
		return nil, tooLarge
	}
	f, err := o.Open(name)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if int64(len(b)) > limit {
		return nil, tooLarge // it has grown since Stat
	}
	return b, nil
}

// plain drops the operation that os errors begin with.
func plain(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
