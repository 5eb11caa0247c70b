// coil.hpp: the C API of coil.h for C++17: objects that close themselves, and exceptions.
//
//     coil::Model model("weights.safetensors");      // or Model() when the weights are linked in
//     coil::Session session(model, 2);               // two threads
//     coil::State state(model);
//     session.bind("step", {{"B", 1}});
//     session.advance("step", state, {{"input_ids", &token}}, {{"logits", logits.data()}});
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coil.h"

namespace coil {

// What went wrong, in one sentence, and which coil_status it was.
class Error : public std::runtime_error {
public:
    explicit Error(int status, const char *message = coil_error_message()) : std::runtime_error(message), status(status) {}
    const int status;
};

inline void check(int status) {
    if (status != COIL_OK) throw Error(status);
}

// The number of an entry, by its name.
inline int32_t entry_index(std::string_view name) {
    const coil_description &all = *coil_describe();
    for (int32_t i = 0; i < all.entry_count; i++)
        if (name == all.entries[i].name) return i;
    throw Error(COIL_ARGUMENT, ("the model has no entry '" + std::string(name) + "'").c_str());
}

inline const coil_entry &entry(std::string_view name) { return coil_describe()->entries[entry_index(name)]; }

namespace detail {
template <class Object, void (*close)(Object *)> struct Closer {
    void operator()(Object *object) const { close(object); }
};
template <class Object, void (*close)(Object *)> using Handle = std::unique_ptr<Object, Closer<Object, close>>;

// Pointers in the order of an entry's tensors; those that are not named stay null.
template <class Pointer>
std::vector<Pointer> by_name(const coil_tensor *tensors, int32_t count,
                             std::initializer_list<std::pair<std::string_view, Pointer>> named) {
    std::vector<Pointer> pointers(static_cast<std::size_t>(count));
    for (const auto &[name, pointer] : named) {
        int32_t i = 0;
        while (i < count && name != tensors[i].name) i++;
        if (i == count) throw Error(COIL_ARGUMENT, ("the entry has no tensor '" + std::string(name) + "'").c_str());
        pointers[static_cast<std::size_t>(i)] = pointer;
    }
    return pointers;
}
} // namespace detail

using Inputs = std::initializer_list<std::pair<std::string_view, const void *>>;
using Outputs = std::initializer_list<std::pair<std::string_view, void *>>;

// The weights. Sessions of one model may run at the same time; it must outlive them and its states.
class Model {
public:
    Model() { open(nullptr); } // linked in, or there are none
    explicit Model(const std::string &weights) { open(weights.c_str()); }
    const coil_model *get() const { return handle.get(); }

private:
    void open(const char *path) {
        coil_options options{};
        options.size = sizeof options;
        options.weights_path = path;
        coil_model *model = nullptr;
        check(coil_open(&options, &model));
        handle.reset(model);
    }
    detail::Handle<coil_model, coil_close> handle;
};

// What a sequence leaves behind. The last `history` calls can be undone.
class State {
public:
    explicit State(const Model &model, int32_t history = 1) {
        coil_state *state = nullptr;
        check(coil_state_open(model.get(), history, &state));
        handle.reset(state);
    }
    void reset() { check(coil_state_reset(get())); }
    void rewind(int32_t calls) { check(coil_state_rewind(get(), calls)); }
    State fork() const {
        coil_state *copy = nullptr;
        check(coil_state_fork(get(), &copy));
        return State(copy);
    }
    std::vector<std::byte> save() const {
        uint64_t bytes = 0;
        check(coil_state_save(get(), nullptr, &bytes));
        std::vector<std::byte> memory(bytes);
        check(coil_state_save(get(), memory.data(), &bytes));
        return memory;
    }
    void load(const std::vector<std::byte> &memory) { check(coil_state_load(get(), memory.data(), memory.size())); }
    coil_state *get() const { return handle.get(); }

private:
    explicit State(coil_state *state) : handle(state) {}
    detail::Handle<coil_state, coil_state_close> handle;
};

// Threads and working memory; used by one thread of the program at a time.
class Session {
public:
    explicit Session(const Model &model, int32_t threads = 1) {
        coil_session *session = nullptr;
        check(coil_session_open(model.get(), threads, &session));
        handle.reset(session);
    }

    // Fix the entry's symbols: bind("prefill", {{"B", 1}, {"L", 512}}).
    void bind(std::string_view name, std::initializer_list<std::pair<std::string_view, int64_t>> values) {
        const coil_entry &info = entry(name);
        std::vector<int64_t> symbols;
        for (int32_t i = 0; i < info.symbol_count; i++)
            for (const auto &[symbol, value] : values)
                if (symbol == info.symbols[i].name) symbols.push_back(value);
        if (symbols.size() != static_cast<std::size_t>(info.symbol_count) || symbols.size() != values.size())
            throw Error(COIL_ARGUMENT, ("the symbols do not fit entry '" + std::string(name) + "'").c_str());
        check(coil_session_bind(handle.get(), entry_index(name), symbols.data()));
    }

    // Run a bound entry once.
    void run(std::string_view name, Inputs inputs, Outputs outputs) {
        const coil_entry &info = entry(name);
        check(coil_session_run(handle.get(), entry_index(name),
                               detail::by_name<const void *>(info.inputs, info.input_count, inputs).data(),
                               detail::by_name<void *>(info.outputs, info.output_count, outputs).data()));
    }

    // Run a bound entry with states: they come from `state` and go back to it.
    void advance(std::string_view name, State &state, Inputs inputs, Outputs outputs) {
        const coil_entry &info = entry(name);
        check(coil_session_advance(handle.get(), entry_index(name), state.get(),
                                   detail::by_name<const void *>(info.inputs, info.input_count, inputs).data(),
                                   detail::by_name<void *>(info.outputs, info.output_count, outputs).data()));
    }

private:
    detail::Handle<coil_session, coil_session_close> handle;
};

} // namespace coil
