package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// group makes a command that only has others under it refuse what is none of them: by itself cobra prints the help of any group but
// the root, and a misspelt command in a script ends with 0.
func group(c *cobra.Command) *cobra.Command {
	c.DisableFlagsInUseLine = true
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(c, args[0])
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

func unknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2
	if meant := c.SuggestionsFor(name); len(meant) > 0 {
		return fmt.Errorf("unknown command %q for %q: did you mean %s?", name, c.CommandPath(), strings.Join(meant, " or "))
	}
	return fmt.Errorf("unknown command %q for %q: %[2]s --help lists those that there are", name, c.CommandPath())
}

// takes wants a number of arguments, and says how the command is called.
func takes(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		n := len(args)
		if n >= least && n <= most {
			return nil
		}
		want := counted(most, "argument")
		switch {
		case most == 0:
			want = "no argument"
		case least != most:
			want = "at most " + want
		}
		return fmt.Errorf("%s takes %s, not %d; usage: %s", c.CommandPath(), want, n, c.UseLine())
	}
}

// misuse is wrong usage that a command finds by itself: before it asks the daemon, which may not be there.
type misuse struct{ text string }

func (m *misuse) Error() string { return m.text }

func misused(format string, a ...any) error { return &misuse{fmt.Sprintf(format, a...)} }

// oneOf refuses a flag or argument that is none of the words that it may be.
func oneOf(what, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return misused("%s %q is none of %s and %s", what, value, strings.Join(words[:len(words)-1], ", "), words[len(words)-1])
}

// flagError says of a value that is none what it must be; pflag gives the words of package strconv.
func flagError(_ *cobra.Command, err error) error {
	var e *pflag.InvalidValueError
	if !errors.As(err, &e) {
		return err
	}
	must, known := map[string]string{"int": "a whole number that fits into 64 bits", "uint16": "a number from 0 to 65535", "duration": "a duration such as 30s", "bool": "true or false"}[e.GetFlag().Value.Type()]
	if !known {
		return err
	}
	return fmt.Errorf("--%s %q must be %s", e.GetFlag().Name, e.GetValue(), must)
}

// mendCobra does the same for the commands that cobra adds by itself.
func mendCobra(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			group(c)
			for _, shell := range c.Commands() {
				shell.Args = takes(0, 0)
			}
		case "help":
			c.Run = nil
			c.RunE = func(_ *cobra.Command, args []string) error {
				about, _, err := root.Find(args)
				if err != nil {
					return err
				}
				about.InitDefaultHelpFlag()
				return about.Help()
			}
			c.Args = func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				switch {
				case err != nil:
					return err
				case len(rest) > 0 && about.HasSubCommands():
					return unknownCommand(about, rest[0])
				}
				return nil
			}
		}
	}
}
