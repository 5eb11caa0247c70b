// continue.cpp: a language model continues a text, by way of coil.hpp.
#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <vector>

#include "coil.hpp"

int main(int argc, char **argv) try {
    if (argc < 2) throw std::runtime_error("usage: continue WEIGHTS [TEXT]; WEIGHTS is '' when they are linked in");
    const std::string prompt = argc > 2 ? argv[2] : "def read(";
    const auto length = static_cast<int64_t>(prompt.size());
    constexpr std::size_t vocabulary = 256;

    const std::string weights = argv[1];
    coil::Model model = weights.empty() ? coil::Model() : coil::Model(weights);
    coil::Session session(model);
    coil::State state(model);
    session.bind("prefill", {{"B", 1}, {"L", length}});
    session.bind("step", {{"B", 1}});

    std::vector<int64_t> tokens;
    for (unsigned char byte : prompt) tokens.push_back(byte);
    std::vector<float> all(prompt.size() * vocabulary);
    session.advance("prefill", state, {{"input_ids", tokens.data()}}, {{"logits", all.data()}});

    std::array<float, vocabulary> logits;
    std::copy(all.end() - vocabulary, all.end(), logits.begin());
    for (int i = 0; i < 64; i++) {
        const int64_t token = std::max_element(logits.begin(), logits.end()) - logits.begin();
        std::cout.put(static_cast<char>(token));
        session.advance("step", state, {{"input_ids", &token}}, {{"logits", logits.data()}});
    }
    std::cout << std::endl;
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
