package psp

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// An entry is an effect, a charge or a refund, under the key that asked for it.
type entry struct {
	Key    string  `json:"key"`
	Charge *Charge `json:"charge,omitempty"`
	Refund *Refund `json:"refund,omitempty"`
}

// A disk is what the provider remembers: a line of its file for each entry. It is not safe for concurrent use.
type disk struct {
	file    *os.File
	entries []entry
	keys    map[string]int
}

func openDisk(path string) (*disk, error) {
	d := &disk{keys: map[string]int{}}
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for line := range strings.Lines(string(old)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		d.remember(e)
	}
	d.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return d, err
}

func (d *disk) remember(e entry) {
	if e.Key != "" {
		d.keys[e.Key] = len(d.entries)
	}
	d.entries = append(d.entries, e)
}

func (d *disk) add(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := d.file.Write(append(line, '\n')); err != nil {
		return err
	}
	d.remember(e)
	return nil
}

func (d *disk) byKey(key string) (entry, bool) {
	i, ok := d.keys[key]
	if !ok {
		return entry{}, false
	}
	return d.entries[i], true
}

func (d *disk) charge(id string) *Charge {
	i := slices.IndexFunc(d.entries, func(e entry) bool { return e.Charge != nil && e.Charge.ID == id })
	if i < 0 {
		return nil
	}
	return d.entries[i].Charge
}

// charges are those of a reference.
func (d *disk) charges(reference string) []*Charge {
	found := []*Charge{}
	for _, e := range d.entries {
		if e.Charge != nil && e.Charge.Metadata["reference"] == reference {
			found = append(found, e.Charge)
		}
	}
	return found
}

// refunds are those of a charge.
func (d *disk) refunds(charge string) []*Refund {
	found := []*Refund{}
	for _, e := range d.entries {
		if e.Refund != nil && e.Refund.Charge == charge {
			found = append(found, e.Refund)
		}
	}
	return found
}

func (d *disk) count() (charges, refunds int) {
	for _, e := range d.entries {
		if e.Charge != nil {
			charges++
		} else {
			refunds++
		}
	}
	return charges, refunds
}
